/** The explanation of a decision: how far to trust it, its strongest words, and their colours in the text. */
import { el, utf16, visible } from "./text.js";

const FAINT = 0.05; // words with less than this share of the largest score have no colour
const STRONGEST = 8;

const VERDICTS = {
  reliable: ["good", "These colours can be trusted", "Hiding the strongest words changes what the model decides far more than hiding random ones."],
  weak: ["middling", "Take these colours with care", "Hiding the strongest words changes more than hiding random ones, but not by much."],
  "no better than chance": ["bad", "Do not rely on these colours", "Hiding the strongest words changes hardly more than hiding random ones."],
};

const quote = (text) => `“${visible(text.length > 60 ? `${text.slice(0, 59)}…` : text)}”`;
const nameOf = (side) => (side.start === null ? "“not in this text”" : quote(side.text));
const largest = (found) => Math.max(1e-12, ...found.words.map((word) => Math.abs(word.score)));
const coloured = (found, part, most) => found.words.filter((word) => word.part === part && Math.abs(word.score) > FAINT * most);

/** The words of the passage that have a colour, in UTF-16 units, and the largest score of all. */
export function passageWords(found, place) {
  const most = largest(found);
  return { most, words: coloured(found, "passage", most).map(({ start, end, score }) => ({ start: place(start), end: place(end), score })) };
}

export function drawWhy(panel, found) {
  const most = largest(found);
  const swatch = (kind, meaning) => {
    const word = el("span", { className: `w ${kind}` }, "word");
    word.style.setProperty("--s", "0.7");
    return el("li", {}, word, ` ${meaning}`);
  };
  const legend = found.signed
    ? [swatch("for", `speaks for ${nameOf(found.chosen)}`), swatch("against", `speaks for ${nameOf(found.other)}`)]
    : [swatch("for", "matters")];
  const [className, verdict, reason] = VERDICTS[found.trust?.verdict] ?? ["", "How far to trust this was not measured", ""];
  panel.replaceChildren(
    el("p", {}, found.chosen.start === null ? "The words that spoke against an answer, and those that spoke for the closest place." : "The words that the answer hangs on."),
    el("ul", { className: "legend", translate: false }, ...legend),
    question(found, most),
    el("h4", { className: `verdict ${className}` }, verdict),
    el("p", { className: "small" }, reason),
    el("p", { className: "flip", translate: false }, flipped(found)),
    el("h4", {}, "Strongest words"),
    strongest(found, most),
    el("p", { className: "small" }, [found.note, `${found.method.replaceAll("_", " ")}: ${found.passes.toLocaleString("en")} readings in ${found.seconds.toFixed(1)} s.`].filter(Boolean).join(" ")),
  );
  for (const each of panel.querySelectorAll("p:empty")) each.remove();
}

function question(found, most) {
  const place = utf16(found.question);
  const made = el("p", { className: "why-question", dir: "auto", translate: false, lang: "" });
  let at = 0;
  for (const { start, end, score } of coloured(found, "question", most)) {
    const word = el("span", { className: `w ${score > 0 ? "for" : "against"}` }, visible(found.question.slice(place(start), place(end))));
    word.style.setProperty("--s", Math.abs(score / most).toFixed(3));
    made.append(visible(found.question.slice(at, place(start))), word);
    at = place(end);
  }
  made.append(visible(found.question.slice(at)));
  return made;
}

/** What changes without which words, as a sentence. */
function flipped({ trust, words, answer }) {
  if (!trust?.flip) return trust?.flip_note ?? "";
  const { flip } = trust;
  const names = [...flip.words].sort((a, b) => a - b).map((i) => quote(words[i].text) + (words[i].part === "question" ? " in the question" : ""));
  const listed = names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0];
  const becomes = flip.answer.start === null ? "there is no answer any more" : `the answer ${answer.start === null ? "is" : "becomes"} ${quote(flip.answer.text)}`;
  return `Without ${listed}, ${becomes}.`;
}

function strongest(found, most) {
  const top = [...found.words].sort((a, b) => Math.abs(b.score) - Math.abs(a.score)).slice(0, STRONGEST).filter((word) => word.score);
  return el("table", { className: "bars", translate: false },
    el("thead", { className: "hidden" }, el("tr", {}, ...["word", "where", "strength"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...top.map((word) => {
      const bar = el("span", { className: `track ${word.score > 0 ? "for" : "against"}`, "aria-hidden": "true" });
      bar.style.setProperty("--share", String(Math.abs(word.score) / most));
      const side = !found.signed ? "" : word.score > 0 ? "for it" : "against it";
      return el("tr", {}, el("th", { scope: "row", dir: "auto" }, visible(word.text)),
        el("td", { className: "small" }, word.part === "question" ? "question" : "text"),
        el("td", { className: "strength" }, bar, el("span", { className: "hidden" }, `${Math.round((100 * Math.abs(word.score)) / most)} % of the strongest, ${side}`)));
    })));
}
