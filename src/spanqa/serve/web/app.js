/** The page: one text, questions to it, and what was found. Texts and keys of the user are held in these variables and nowhere else. */
import { QUESTIONS, TEXT } from "./example.js";
import { makeLink, takeLink } from "./link.js";
import { call, Refusal, useKey } from "./server.js";
import { $, el, makeReading, utf16, visible } from "./text.js";
import { drawWhy, passageWords } from "./why.js";

const PLACES = 5;
const SHOWN = 0.02; // places that are less probable are left out, but for the first
const LONG = 200_000; // characters: longer texts are only read and replaced; browsers take seconds to make them editable

let text = "";
let info = null; // what the server says of itself
let items = []; // questions asked of this text, newest first
let item = null; // the one that is shown
let work = new AbortController(); // ends what the server does for a question that is not wanted any more

const reading = makeReading($("reading"), (number) => choose(number));
const announce = (message) => {
  $("announcement").textContent = message;
};
const clip = (words, most = 80) => (words.length > most ? `${words.slice(0, most - 1).trimEnd()}…` : words);
const button = (label, act, properties = {}) => {
  const made = el("button", { type: "button", ...properties }, label);
  made.addEventListener("click", act);
  return made;
};

// --- the text

const editing = () => !$("text").hidden;
const currentText = () => (editing() ? $("text").value.toWellFormed?.() ?? $("text").value : text);

function showSize() {
  const length = currentText().length;
  const most = info?.limits.max_passage ?? Infinity;
  $("size").textContent = length ? `${length.toLocaleString("en")} characters${length > most ? `; at most ${most.toLocaleString("en")} can be read` : ""}` : "";
  $("size").classList.toggle("bad", length > most);
  $("clear").hidden = !length;
  $("edit").hidden = !length || (!editing() && length > LONG);
  $("edit").textContent = editing() ? "Done" : "Edit";
  $("examples").hidden = length > 0 && currentText() !== TEXT;
}

/** Show this text to be read, or to be edited. */
function setText(value, edit = false) {
  if (value !== text || !$("reading").firstChild) {
    text = value;
    reading.show(text);
  }
  if (edit) $("text").value = text;
  $("text").hidden = !edit;
  $("reading").hidden = edit;
  showSize();
  if (item && item.text !== text) show(null);
  else if (!edit) paint();
  showHistory();
}

function read() {
  if (editing()) setText(currentText());
}

async function openFile(file) {
  const most = info?.limits.max_passage ?? 1_000_000;
  const name = `“${clip(file.name, 40)}”`;
  if (/\.(html?|xhtml|pdf|docx?|odt|rtf|epub)$/i.test(file.name)) {
    return problem(`Only plain text can be opened here, and ${name} is not. Open it in its own program and copy the text.`);
  }
  if (file.size > 4 * most) return problem(`${name} is too long: this server reads at most ${most.toLocaleString("en")} characters.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const encoding = bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : "utf-8";
  try {
    const found = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    if (found.includes("\0")) throw new TypeError("binary");
    setText(found.replaceAll(/\r\n?/g, "\n"));
    problem("");
    $("question").focus();
  } catch {
    problem(`${name} is not plain text in UTF-8. Save it as plain text, or copy the text and paste it.`);
  }
}

// --- what goes wrong

function problem(message, ...buttons) {
  $("problem").hidden = !message;
  $("problem").querySelector("p").textContent = message;
  $("problem").querySelector(".tools").replaceChildren(...buttons);
}

const pause = (seconds, signal) => new Promise((done) => {
  const timer = setTimeout(done, 1000 * seconds);
  signal?.addEventListener("abort", () => (clearTimeout(timer), done()));
});

/** Say what went wrong, and offer `again` where that can help. */
async function explainFailure(error, again, signal) {
  if (error.name === "AbortError" || signal?.aborted) return undefined;
  if (!(error instanceof Refusal)) throw error;
  if (error.kind === "key") return (await askKey(error.message)) ? again() : problem("This server answers only with a key.", button("Give the key", again));
  if (error.kind === "refused") return problem(error.message);
  if (error.kind === "loading") {
    problem(`${error.message} Your question is asked as soon as it is ready.`);
    for (;;) {
      await pause(1, signal);
      if (signal?.aborted) return undefined;
      const state = await call("ready", null, signal).catch((found) => found);
      if (!(state instanceof Refusal && state.kind === "loading")) return again();
    }
  }
  const retry = button("Ask again", again);
  problem(error.message, retry);
  if (error.kind === "busy") {
    retry.disabled = true;
    for (let left = error.seconds; left > 0; left--) {
      retry.textContent = `Ask again in ${left} s`;
      await pause(1, signal);
    }
    retry.textContent = "Ask again";
    retry.disabled = false;
  }
  return undefined;
}

function askKey(message) {
  const dialog = $("key");
  if (dialog.open) return Promise.resolve(false);
  $("key-title").textContent = message;
  $("key-text").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" ? $("key-text").value.trim() : "";
      $("key-text").value = "";
      if (given) useKey(given);
      $("question").focus();
      done(Boolean(given));
    }, { once: true });
  });
}

async function getInfo(signal) {
  info = await call("info", null, signal);
  $("model").textContent = info.model;
  showSize();
}

/** Do some work for the user; what was going on before is given up. Failures are explained, and `again` tries once more. */
async function start(task, again) {
  work.abort();
  work = new AbortController();
  const { signal } = work;
  problem("");
  try {
    if (!info) await getInfo(signal);
    if (task) await task(signal);
  } catch (error) {
    $("waiting").hidden = true;
    await explainFailure(error, again, signal);
  }
}

// --- a question

async function ask() {
  const question = $("question").value.trim();
  if (!currentText().trim()) {
    problem("There is no text yet. Paste one, or ask about the example.");
    return (editing() ? $("text") : $("edit")).focus();
  }
  if (!question) {
    problem("Write a question first.");
    return $("question").focus();
  }
  read();
  $("question").select();
  return start((signal) => answer(question.toWellFormed?.() ?? question, signal), ask);
}

async function answer(question, signal) {
  const asked = text;
  const timer = setTimeout(() => ($("waiting").hidden = signal.aborted), 250);
  try {
    const body = { question, passages: [asked], top_k: Math.min(PLACES, info.limits.max_top_k), no_answer: "off" };
    let found = await call("v1/answers", body, signal);
    if (found.model !== info.model) await getInfo(signal);
    const place = utf16(asked);
    const all = found.answers.map((each) => ({ ...each, from: place(each.start), to: place(each.end) }));
    const made = {
      question, text: asked, chosen: 0, explanation: null, view: "answer", calibrated: found.calibrated,
      places: all.filter((each, i) => i === 0 || each.probability >= SHOWN),
      nowhere: found.no_answer_probability,
      answered: all.length > 0 && all[0].score >= (info.no_answer_threshold ?? -Infinity),
    };
    items = [made, ...items.filter((each) => each.text === asked && each.question !== question)];
    show(made);
  } finally {
    clearTimeout(timer);
    $("waiting").hidden = true;
  }
}

// --- an answer

function show(next) {
  item = next;
  $("result").hidden = !item;
  showHistory();
  if (!item) return reading.draw([]);
  if (text !== item.text || editing()) setText(item.text);
  $("asked-question").textContent = visible(item.question);
  $("tabs").hidden = !info?.explains;
  $("link-text").hidden = true;
  $("link-says").textContent = "";
  $("rough").hidden = item.calibrated;
  const legend = item.answered ? "Places in the text, most likely first" : "The closest places, which are not answers";
  $("places").replaceChildren(el("legend", {}, legend), ...item.places.map(placeRow));
  $("places").hidden = item.places.length === 0;
  openTab(item.view, false);
  const place = item.places[0];
  const others = item.places.length - 1;
  announce(item.answered
    ? `Answer: ${clip(place.text, 200)}. ${percent(place.probability)} likely.${others > 0 ? ` ${others} other ${others === 1 ? "place" : "places"}.` : ""}`
    : `Not in this text.${place ? ` Closest, but not an answer: ${clip(place.text, 200)}.` : ""}`);
  return undefined;
}

const percent = (share) => (share > 0 && share < 0.005 ? "under 1 %" : `${Math.round(100 * share)} %`);

function placeRow(place, number) {
  const radio = el("input", { type: "radio", name: "place", value: String(number), checked: number === item.chosen });
  radio.addEventListener("change", () => choose(number));
  return el("label", {}, radio, el("span", { className: "place", dir: "auto", translate: false, lang: "" }, clip(visible(place.text), 160)),
    el("span", { className: "share" }, percent(place.probability)));
}

/** Show another of the places that were found. */
function choose(number) {
  if (!item || !item.places[number] || item.view !== "answer") return;
  item.chosen = number;
  $("places").querySelectorAll("input")[number].checked = true;
  read();
  showPlace();
  const place = item.places[number];
  announce(`Place ${number + 1} of ${item.places.length}: ${clip(place.text, 200)}. ${percent(place.probability)} likely.`);
}

/** Whole percentages that add up to 100. */
function wholes(shares) {
  const floors = shares.map((share) => Math.floor(100 * share));
  const order = shares.map((share, i) => [100 * share - floors[i], i]).sort((a, b) => b[0] - a[0]);
  for (let i = 0, left = 100 - floors.reduce((a, b) => a + b, 0); left > 0; left--, i++) floors[order[i % 3][1]]++;
  return floors;
}

function showPlace() {
  const place = item.places[item.chosen];
  const first = item.chosen === 0;
  $("answer").textContent = item.answered ? visible(place.text) : "Not in this text";
  $("answer").className = item.answered ? (place.text.length > 90 ? "long" : "") : "none";
  const here = place?.probability ?? 0;
  $("says").textContent = !item.answered
    ? (place ? `The model gives no answer. “${clip(visible(place.text), 90)}” is ${first ? "the closest place" : "one of the closest places"}; it is marked in the text, but it is not an answer.`
      : "There is nothing in it that could be an answer.")
    : !first ? "Another place. The model finds it less likely than the first."
      : here >= 0.8 ? "The model is confident of this."
        : here >= 0.5 ? "The model finds this likely. The other places are worth a look."
          : "The model is unsure. Look at the other places too.";
  const shares = [here, Math.max(0, 1 - here - item.nowhere), item.nowhere];
  const numbers = wholes(shares);
  [...$("bar").children].forEach((part, i) => part.style.setProperty("--share", String(shares[i])));
  const names = [item.answered && first ? "This answer" : "This place", "Elsewhere in the text", "Not in the text"];
  $("shares").replaceChildren(...names.map((name, i) =>
    el("li", { className: ["here", "elsewhere", "nowhere"][i] }, el("b", {}, `${numbers[i]} %`), ` ${name}`)));
  paint();
}

/** Mark in the text what the view that is open speaks of. */
function paint() {
  if (!item || editing()) return;
  const why = item.view === "why" && item.explanation;
  if (why) {
    const place = utf16(text);
    const { words, most } = passageWords(why, place);
    const sides = [[why.chosen, "chosen", "answer"], [why.other, "closest", "set against it"]].filter(([side]) => side.start !== null);
    const marks = sides.map(([side, kind, label]) => ({ start: place(side.start), end: place(side.end), kind: `${kind} outlined`, label }));
    reading.draw(marks, words, most);
  } else {
    reading.draw(item.places.map((each, number) => ({
      start: each.from, end: each.to, number,
      kind: number !== item.chosen ? "other" : item.answered ? "chosen" : "closest",
      label: number !== item.chosen ? `place ${number + 1}` : !item.answered ? "closest, not an answer" : number ? "chosen place" : "answer",
    })));
  }
  reading.reveal($("reading").querySelector("mark.chosen") ? "chosen" : "closest");
}

function showHistory() {
  const here = items.filter((each) => each.text === currentText());
  $("history").hidden = here.length < 2 && (item !== null || here.length === 0);
  $("history").querySelector("ol").replaceChildren(...here.map((each) => {
    const found = each.answered ? clip(visible(each.places[0].text), 60) : "Not in this text";
    const row = button("", () => {
      work.abort();
      problem("");
      $("question").value = each.question;
      show(each);
    });
    row.append(el("span", { dir: "auto", translate: false }, clip(visible(each.question), 120)),
      el("span", { className: each.answered ? "found" : "found none", dir: "auto", translate: false }, found));
    if (each === item) row.setAttribute("aria-current", "true");
    return el("li", {}, row);
  }));
}

// --- views of an answer

function openTab(view, focus = true) {
  item.view = info?.explains ? view : "answer";
  for (const name of ["answer", "why"]) {
    const open = name === item.view;
    const tab = $(`tab-${name}`);
    tab.setAttribute("aria-selected", String(open));
    tab.tabIndex = open ? 0 : -1;
    $(`panel-${name}`).hidden = !open;
    if (open && focus) tab.focus();
  }
  if (item.view === "why") {
    read();
    return item.explanation ? showWhy() : explain();
  }
  return showPlace();
}

function showWhy() {
  item.chosen = 0;
  $("answer").textContent = item.answered ? visible(item.places[0].text) : "Not in this text";
  if (item.places.length) $("places").querySelector("input").checked = true;
  drawWhy($("panel-why"), item.explanation);
  paint();
}

/** Ask for an explanation, and count the seconds meanwhile. */
function explain() {
  const of = item;
  const back = () => {
    work.abort();
    if (item === of) openTab("answer");
  };
  const clock = el("span", { "aria-hidden": "true" });
  $("panel-why").replaceChildren(
    el("p", { className: "working" }, "The model reads the text again and again with words hidden, to find those that its decision hangs on. ", clock),
    el("div", { className: "tools" }, button("Cancel", back)));
  announce("Looking for the words that the decision hangs on.");
  paint();
  const began = performance.now();
  const tick = () => (clock.textContent = `${Math.floor((performance.now() - began) / 1000)} s`);
  tick();
  return start(async (signal) => {
    const timer = setInterval(tick, 1000);
    try {
      const body = { question: of.question, passage: of.text };
      of.explanation = await call("v1/explain", body, signal);
    } finally {
      clearInterval(timer);
      if (!of.explanation) $("panel-why").replaceChildren();
    }
    if (item === of && of.view === "why") {
      showWhy();
      announce("The words are marked by how much they speak for the decision.");
    }
  }, () => item === of && openTab("why"));
}

// --- links

async function copyLink() {
  const of = item;
  const link = await makeLink(of.question, of.text);
  if (!link) {
    $("link-says").textContent = "This text is too long for a link. Share the text itself.";
    return;
  }
  try {
    await navigator.clipboard.writeText(link);
    $("link-says").textContent = "Copied. Whoever has the link has the question and the text.";
  } catch {
    $("link-text").hidden = false;
    $("link-text").value = link;
    $("link-text").select();
    $("link-says").textContent = "The browser does not let this page copy. The link is selected: copy it yourself.";
  }
}

async function openLink() {
  const found = await takeLink();
  if (found === null) return;
  if (!found) return problem("This link cannot be read. Perhaps a part of it is missing.");
  setText(found.text);
  $("question").value = found.question;
  $("question").focus();
  announce("The link has filled in the text and the question. Enter asks.");
}

// --- what the user does

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("question").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.isComposing || !item?.places.length) return;
  event.preventDefault();
  choose((item.chosen + step + item.places.length) % item.places.length);
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k" && !$("key").open) {
    event.preventDefault();
    $("question").focus();
    $("question").select();
  }
});
$("tabs").addEventListener("click", (event) => event.target.role === "tab" && openTab(event.target.id.slice(4)));
$("tabs").addEventListener("keydown", (event) => {
  if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  openTab(event.key === "Home" || (event.key !== "End" && item.view === "why") ? "answer" : "why");
});
$("text").addEventListener("input", () => {
  showSize();
  if (item) $("result").hidden = item.text !== currentText();
  showHistory();
});
$("text").addEventListener("paste", (event) => {
  const pasted = event.clipboardData.getData("text/plain");
  if (pasted.length < LONG || $("text").value) return;
  event.preventDefault();
  setText(pasted.replaceAll(/\r\n?/g, "\n"));
  $("question").focus();
});
$("edit").addEventListener("click", () => {
  if (editing()) return item && item.text === currentText() ? show(item) : read();
  setText(text, true);
  return $("text").focus();
});
$("clear").addEventListener("click", () => {
  work.abort();
  problem("");
  setText("", true);
  $("text").focus();
});
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files[0]) openFile($("file").files[0]);
  $("file").value = "";
});
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
}
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  const dropped = event.dataTransfer.getData("text/plain");
  if (file) openFile(file);
  else if (dropped) setText(dropped);
});
addEventListener("hashchange", openLink);
$("link").addEventListener("click", copyLink);

$("examples").querySelector("ul").append(...QUESTIONS.map((question) => el("li", {}, button(question, () => {
  setText(TEXT);
  $("question").value = question;
  ask();
}))));

setText("", true);
$("text").focus();
openLink();
const begin = () => start(null, begin);
begin();
