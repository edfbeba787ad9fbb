"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const page = read("explanation");

  // --- small things

  /** An element with properties; children are nodes or texts, never markup. */
  const el = (name, properties = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  const svg = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const signed = (value, digits = 2) => {
    const text = Math.abs(value).toFixed(digits);
    return Number(text) === 0 ? text : (value < 0 ? "−" : page.signed ? "+" : "") + text;
  };
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  /** Characters that cannot be seen, or that reorder the text, as symbols of one UTF-16 unit; wording.py does the same. */
  let symbols = false;
  const visible = (text) =>
    text.replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]/g, (found) => {
      symbols = true;
      const code = found.charCodeAt(0);
      return code < 32 ? String.fromCharCode(0x2400 + code) : code === 127 ? "\u2421" : "\u241a";
    });

  const save = (name, blob) => {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const rows = (table, caption, heads, lines) => {
    const line = (cells) =>
      el("tr", {}, ...cells.map((cell, i) =>
        cell instanceof Node ? el("td", { className: heads[i].kind || "" }, cell)
          : heads[i].header ? el("th", { scope: "row", className: heads[i].kind || "", dir: "auto" }, cell)
            : el("td", { className: heads[i].kind || "" }, cell)));
    const made = [el("tbody", {}, ...lines.map(line))];
    if (heads.some((head) => head.text)) {
      made.unshift(el("thead", {}, el("tr", {}, ...heads.map((head) =>
        head.text ? el("th", { scope: "col", className: head.kind === "number" ? "number" : "" }, head.text) : el("td", { className: head.kind || "" })))));
    }
    if (caption) made.unshift(el("caption", {}, caption));
    table.replaceChildren(...made);
  };

  // --- words: [start, end, score, in question, measured by itself, in a span, start and end in code points]

  const words = page.words.map(([start, end, score, inQuestion, refined, inSpan, first, last]) => ({
    start, end, score, inQuestion: !!inQuestion, refined: !!refined, inSpan: !!inSpan, first, last,
    text: (inQuestion ? page.question : page.passage).slice(start, end),
  }));
  const largest = Math.max(1e-12, ...words.map((word) => Math.abs(word.score)));
  const ranked = [...words].sort((a, b) => Math.abs(b.score) - Math.abs(a.score));

  /** Fill `box` with text[from:to]: words as coloured spans, marked spans boxed; what lies between them as plain text. */
  const drawText = (box, text, from, to, these, marks) => {
    const bounds = new Set([from, to]);
    for (const { start, end } of [...these, ...marks]) {
      bounds.add(clamp(start, from, to));
      bounds.add(clamp(end, from, to));
    }
    const places = [...bounds].sort((a, b) => a - b);
    let next = 0;
    let plain = "";
    const flush = () => {
      if (plain) box.append(plain);
      plain = "";
    };
    for (let i = 0; i + 1 < places.length; i++) {
      const [left, right] = [places[i], places[i + 1]];
      while (next < these.length && these[next].end <= left) next++;
      const word = next < these.length && these[next].start <= left ? these[next] : null;
      const shown = visible(text.slice(left, right));
      let node = shown;
      if (word && Math.abs(word.score) > 0.05 * largest) {
        const sign = word.score > 0 ? "for" : "against";
        node = el("span", { className: `w ${sign}${word.refined ? "" : " shared"}`, title: signed(word.score) }, shown);
        node.style.setProperty("--s", Math.abs(word.score / largest).toFixed(3));
      }
      for (const mark of marks) {
        if (mark.start <= left && right <= mark.end) {
          const edges = `${mark.start === left ? " begins" : ""}${mark.end === right ? " ends" : ""}`;
          const label = mark.start === left ? [el("span", { className: "hidden" }, `${mark.label}: `)] : [];
          node = el("mark", { className: mark.kind + edges }, ...label, node);
        }
      }
      if (node instanceof Node) {
        flush();
        box.append(node);
      } else plain += node;
    }
    flush();
  };

  /** Where the text is shown at once: from the words and spans given, and as far as the next ones are near. */
  const stretches = (places, length) => {
    const near = 600;
    const found = [];
    for (const { start, end } of [...places].sort((a, b) => a.start - b.start)) {
      const last = found.at(-1);
      if (last && start - last[1] < near) last[1] = Math.max(last[1], end);
      else found.push([start, end]);
    }
    if (!found.length) return [[0, Math.min(length, near)]];
    if (found[0][0] < near) found[0][0] = 0;
    if (length - found.at(-1)[1] < near) found.at(-1)[1] = length;
    return found;
  };
  const fold = (text, where, leftOut) => {
    const count = (text.match(/\S+/g) || []).length;
    const made = el("details", {}, el("summary", {}, `Show the ${plural(count, "word")} ${where}`));
    const note = leftOut ? ` [${plural(leftOut, "more character")} ${where} are not in this file.] ` : "";
    made.append(where === "before" ? note + visible(text) : visible(text) + note);
    return made;
  };

  const drawAnswer = () => {
    const says = page.says;
    document.title = `${says.answer.slice(0, 60)}: an answer explained`;
    $("question").textContent = visible(page.question);
    $("answer").textContent = says.answer;
    $("answer").className = page.answered ? (says.answer.length > 90 ? "long" : "") : "none";
    for (const id of ["probability", "target", "flip", "evidence", "convergence", "note", "method"]) $(id).textContent = says[id];
    if (page.source) $("source").textContent = `Read in ${visible(page.source)}.`;
    $("verdict").textContent = says.verdict[0].toUpperCase() + says.verdict.slice(1);
    $("verdict").className = { reliable: "good", weak: "middling", "no better than chance": "bad" }[says.verdict] || "";

    const marks = [];
    if (page.chosen) marks.push({ start: page.chosen[0], end: page.chosen[1], kind: "chosen", label: "answer" });
    if (page.other) marks.push({ start: page.other[0], end: page.other[1], kind: "set-against", label: "what it is set against" });
    drawText($("question-text"), page.question, 0, page.question.length, words.filter((word) => word.inQuestion), []);
    const inPassage = words.filter((word) => !word.inQuestion);
    const box = $("passage-text");
    const text = page.passage;
    let at = 0;
    for (const [from, to] of stretches([...inPassage, ...marks], text.length)) {
      if (from > at) box.append(fold(text.slice(at, from), at ? "between" : "before", at ? 0 : page.left_out[0]));
      drawText(box, text, from, to, inPassage.filter((word) => word.end > from && word.start < to), marks);
      at = to;
    }
    if (at < text.length) box.append(fold(text.slice(at), "behind", page.left_out[1]));
    $("symbols").hidden = !symbols;

    const sample = (kind, meaning) => {
      const word = el("span", { className: `w ${kind}` }, "word");
      word.style.setProperty("--s", "0.7");
      return el("li", {}, word, ` ${meaning}`);
    };
    const legend = [sample("for", page.signed ? `for ${says.chosen}` : "matters")];
    if (page.signed) legend.push(sample("against", `against it, for ${says.other}`));
    if (words.some((word) => !word.refined)) legend.push(sample("for shared", "dotted: its share of a sentence"));
    if (page.chosen) legend.push(el("li", {}, el("mark", { className: "chosen begins ends" }, "box"), " the answer"));
    if (page.other) legend.push(el("li", {}, el("mark", { className: "set-against begins ends" }, "box"), " what it is set against"));
    $("legend").append(...legend);
    $("made").append(...page.made_with.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  };

  // --- bars and tables of words

  const track = (value, low, high, className) => {
    const share = (x) => (100 * (x - low)) / (high - low || 1);
    const bar = el("span", { className });
    bar.style.left = `${share(Math.min(0, value))}%`;
    bar.style.width = `${share(Math.max(0, value)) - share(Math.min(0, value))}%`;
    const made = el("span", { className: "track", "aria-hidden": "true" }, bar);
    if (low < 0) {
      const zero = el("span", { className: "zero" });
      zero.style.left = `${share(0)}%`;
      made.append(zero);
    }
    return made;
  };
  const where = (word) => (word.inQuestion ? "question" : word.inSpan ? "passage, in a span" : "passage");

  const drawWords = () => {
    const top = ranked.slice(0, 12);
    const low = Math.min(0, ...top.map((word) => word.score));
    const high = Math.max(0, ...top.map((word) => word.score));
    rows($("top-words"), "", [
      { text: "word", kind: "word", header: true }, { text: "in the" }, { text: "score", kind: "number" }, { kind: "bar" },
    ], top.map((word) => [visible(word.text), where(word), signed(word.score), track(word.score, low, high, word.score < 0 ? "against" : "for")]));
    const details = $("all-words");
    details.querySelector("summary").textContent = `All ${plural(words.length, "word")}`;
    details.addEventListener("toggle", () => {
      const table = details.querySelector("table");
      if (table.rows.length) return;
      rows(table, "", [
        { text: "word", kind: "word", header: true }, { text: "in the" }, { text: "score", kind: "number" }, { text: "measured" }, { text: "characters" },
      ], ranked.map((word) => [
        visible(word.text), where(word), signed(word.score, 3), word.refined ? "by itself" : "with its sentence", `${word.first}–${word.last}`,
      ]));
    });
    $("save-words").addEventListener("click", () => {
      const cell = (value) => `"${String(value).replaceAll('"', '""')}"`;
      const lines = words.map((word) =>
        [word.inQuestion ? "question" : "passage", cell(word.text), word.first, word.last, word.score, word.refined, word.inSpan].join(","));
      save("words.csv", new Blob([["part,text,start,end,score,refined,in_span", ...lines].join("\r\n"), "\r\n"], { type: "text/csv" }));
    });
  };

  // --- faithfulness

  const CURVES = [
    { title: "Hidden: how far the probability falls", ours: 2, random: 4, good: "higher is better" },
    { title: "Alone kept: how far the probability falls", ours: 3, random: 5, good: "lower is better" },
  ];

  const drawCurves = () => {
    if (!page.curve.length) return;
    const [W, H, L, R, T, B] = [336, 132, 30, 88, 8, 20];
    for (const { title, ours, random, good } of CURVES) {
      const values = page.curve.flatMap((point) => [point[ours], point[random]]);
      const [low, high] = [Math.min(0, ...values), Math.max(0.1, ...values)];
      const last = page.curve.at(-1);
      const x = (share) => L + ((W - L - R) * share) / last[0];
      const y = (value) => T + ((H - T - B) * (high - value)) / (high - low);
      const line = (which, className) => svg("polyline", { class: className, points: page.curve.map((p) => `${x(p[0]).toFixed(1)},${y(p[which]).toFixed(1)}`).join(" ") });
      let [oursAt, randomAt] = [y(last[ours]), y(last[random])];
      if (Math.abs(oursAt - randomAt) < 13) {
        const [middle, sign] = [(oursAt + randomAt) / 2, oursAt < randomAt ? 1 : -1];
        [oursAt, randomAt] = [middle - 6.5 * sign, middle + 6.5 * sign];
      }
      const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}, ${good}. The numbers are in the table below.` },
        svg("line", { class: "grid", x1: L, x2: W - R, y1: y(high), y2: y(high) }),
        svg("line", { class: "axis", x1: L, x2: W - R, y1: y(0), y2: y(0) }),
        svg("text", { x: L - 5, y: y(0) + 4, "text-anchor": "end" }, "0"),
        svg("text", { x: L - 5, y: y(high) + 4, "text-anchor": "end" }, high.toFixed(1)),
        ...page.curve.map((p) => svg("text", { x: x(p[0]), y: H - 4, "text-anchor": "middle" }, `${Math.round(100 * p[0])}`)),
        svg("text", { x: W - R + 12, y: H - 4 }, "% of words"),
        line(random, "random"), line(ours, "ours"),
        ...page.curve.map((p) => svg("circle", { class: "dot", r: 2.75, cx: x(p[0]), cy: y(p[ours]) })),
        svg("text", { class: "ours-text", x: W - R + 7, y: oursAt + 4 }, "these scores"),
        svg("text", { x: W - R + 7, y: randomAt + 4 }, "random"));
      $("curves").append(el("figure", { className: "curve" }, picture, el("figcaption", {}, `${title}; ${good}.`)));
    }
    $("curve-details").hidden = false;
    rows($("curve-table"), "Fall of the probability of the decision", [
      { text: "words", header: true, kind: "number" }, { text: "hidden", kind: "number" }, { text: "random", kind: "number" },
      { text: "alone kept", kind: "number" }, { text: "random", kind: "number" },
    ], page.curve.map((p) => [`${Math.round(100 * p[0])} % (${p[1]})`, ...[p[2], p[4], p[3], p[5]].map((value) => value.toFixed(3))]));
  };

  // --- attention: blocks

  const KINDS = ["first", "other", "question", "passage", "answer"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const STOPS = {
    light: [[253, 252, 250], [203, 226, 224], [90, 163, 167], [16, 94, 106], [5, 33, 46]],
    dark: [[22, 26, 30], [20, 62, 72], [30, 124, 131], [120, 204, 190], [242, 253, 238]],
  };
  const tables = {};
  /** 256 colours, as little-endian RGBA. */
  const colours = () => {
    const name = dark.matches ? "dark" : "light";
    if (!tables[name]) {
      const stops = STOPS[name];
      tables[name] = Uint32Array.from({ length: 256 }, (_, i) => {
        const at = (i / 255) * (stops.length - 1);
        const low = Math.min(stops.length - 2, Math.floor(at));
        const [r, g, b] = [0, 1, 2].map((c) => Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c])));
        return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
      });
    }
    return tables[name];
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const kept = new Map();
  /** The bytes of a block; the last few large ones are kept. */
  const block = (id) => {
    if (!kept.has(id)) {
      const text = $(id).textContent;
      kept.set(id, Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
      if (kept.size > 64) kept.delete(kept.keys().next().value);
    }
    return kept.get(id);
  };
  const weight = (byte) => (byte / 255) ** 2;
  const two = (number) => String(number).padStart(2, "0");
  const picture = (bytes, width, height) => {
    const canvas = el("canvas", { width, height });
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const table = colours();
    for (let i = 0; i < pixels.length; i++) pixels[i] = table[bytes[i]];
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  };
  /** A canvas of CSS pixels, sharp on every screen. */
  const sized = (canvas, width, height) => {
    const scale = Math.min(3, devicePixelRatio || 1);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    return context;
  };

  // --- attention: the views

  const drawAttention = () => {
    const about = read("attention");
    const { tokens, kinds, heads } = about;
    const size = tokens.length;
    const thumb = Math.min(48, size);
    const section = $("attention-section");
    section.hidden = false;
    const special = (kind) => tokens[kinds.indexOf(kind)] || "";
    const names = { first: special(0) || "first token", other: special(1) || "other special tokens", question: "question", passage: "rest of the passage", answer: page.chosen ? "answer" : "best span" };
    const span = `the ${names.answer} ${page.chosen ? page.says.chosen : page.says.other}`;
    const looking = new Set(about.answer_rows.map((row) => kinds[row]));
    const rowsFrom = [...(looking.has(0) ? [names.first] : []), ...(looking.has(4) ? [span] : [])].join(" and ") || "the decision";
    const introduce = () => {
      const ofWindow = about.window[1] > 1 ? ` Window ${about.window[0] + 1} of ${about.window[1]}.` : "";
      $("attention-text").textContent =
        `${plural(about.layers.length * heads, "head")} of ${plural(about.layers.length, "layer")}, ${plural(size, "token")}.${ofWindow} ` +
        `A row of a picture is a token that looks, a column one that is looked at; ${dark.matches ? "bright" : "dark"} is much. ` +
        "Attention shows where heads look, not why the model decided.";
    };
    const all = about.layers.flatMap((layer) =>
      about.numbers[layer].map((numbers, head) => ({ layer, head, numbers })));
    const ORDERS = [
      { name: "by layer", key: 0, label: "relevance", text: "One row for each layer. The bar under a head is its relevance." },
      { name: "relevance", key: 0, label: "relevance", text: `How much of the attention of ${rowsFrom} goes to the words with high scores, outside itself.` },
      { name: "narrow first", key: 1, label: "spread", rising: true, text: "Heads that look at few tokens first. The bar is the spread of a row: 1 for a look at all tokens alike." },
      { name: `on ${names.first}`, key: 2, label: `share on ${names.first}`, text: `Share of all attention that goes to ${names.first}, where heads often look that have nothing to do.` },
      { name: `on ${names.other}`, key: 3, label: `share on ${names.other}`, text: `Share of all attention that goes to ${names.other}.` },
      { name: "neighbours", key: 4, label: "share on neighbours", text: "Share of all attention that goes to the token itself and the two beside it." },
    ];
    let order = ORDERS[0];
    let shown = all;
    let columns = heads;
    let selected = all.reduce((best, one) => (one.numbers[0] > best.numbers[0] ? one : best), all[0]);

    // the atlas

    const list = section.querySelector("[role=listbox]");
    const atlas = section.querySelector("#atlas canvas");
    const options = all.map(() => el("div", { role: "option" }));
    options.forEach((option, i) => (option.id = `option-${i}`));
    list.append(...options);

    const drawAtlas = () => {
      const byLayer = order === ORDERS[0];
      const room = section.querySelector(".atlas-scroll").clientWidth - 8;
      const [label, gap] = [byLayer ? 22 : 0, room < 420 ? 2 : 5];
      shown = byLayer ? all : [...all].sort((a, b) => (order.rising ? 1 : -1) * (a.numbers[order.key] - b.numbers[order.key]));
      let tile = byLayer ? clamp(Math.floor((room - label) / heads) - gap, 24, 66) : 42;
      columns = byLayer ? heads : Math.max(1, Math.floor(room / (tile + gap)));
      const lines = Math.ceil(shown.length / columns);
      const step = tile + gap;
      const high = tile + 9 + gap;
      const context = sized(atlas, label + columns * step, lines * high);
      context.fillStyle = colour("soft");
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      context.textAlign = "right";
      if (byLayer) about.layers.forEach((layer, i) => context.fillText(String(layer), label - 7, i * high + tile / 2));
      const most = Math.max(1e-9, ...all.map((one) => one.numbers[order.key]));
      shown.forEach((one, i) => {
        const [x, y] = [label + (i % columns) * step, Math.floor(i / columns) * high];
        const bytes = block(`T${two(one.layer)}`).subarray(one.head * thumb * thumb, (one.head + 1) * thumb * thumb);
        context.imageSmoothingEnabled = tile < thumb;
        context.drawImage(picture(bytes, thumb, thumb), x, y, tile, tile);
        context.strokeStyle = colour("rule");
        context.lineWidth = 1;
        context.strokeRect(x + 0.5, y + 0.5, tile - 1, tile - 1);
        context.fillStyle = colour("rule");
        context.fillRect(x, y + tile + 3, tile, 3);
        context.fillStyle = colour("accent");
        context.fillRect(x, y + tile + 3, (tile * one.numbers[order.key]) / most, 3);
        options[i].setAttribute("aria-label", `Layer ${one.layer}, head ${one.head}, ${order.label} ${one.numbers[order.key].toFixed(2)}`);
        options[i].title = options[i].getAttribute("aria-label");
      });
      list.style.gridTemplateColumns = `repeat(${columns}, ${tile}px)`;
      list.style.gridAutoRows = `${tile}px`;
      list.style.columnGap = `${gap}px`;
      list.style.rowGap = `${high - tile}px`;
      list.style.paddingLeft = `${label}px`;
      list.style.alignContent = "start";
      $("order-text").textContent = order.text;
      markSelected();
    };
    const markSelected = () => {
      const at = shown.indexOf(selected);
      options.forEach((option, i) => option.setAttribute("aria-selected", String(i === at)));
      list.setAttribute("aria-activedescendant", options[at].id);
      return options[at];
    };
    const choose = (one) => {
      selected = one;
      markSelected().scrollIntoView({ block: "nearest", inline: "nearest" });
      showHead();
    };
    list.addEventListener("click", (event) => {
      const at = options.indexOf(event.target);
      if (at >= 0) choose(shown[at]);
    });
    list.addEventListener("keydown", (event) => {
      const at = shown.indexOf(selected);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + columns, ArrowUp: at - columns, Home: 0, End: shown.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      if (to >= 0 && to < shown.length) choose(shown[to]);
    });
    $("orders").append(...ORDERS.map((one, i) => {
      const input = el("input", { type: "radio", name: "order", checked: i === 0 });
      input.addEventListener("change", () => {
        order = one;
        drawAtlas();
      });
      return el("label", {}, input, el("span", {}, one.name));
    }));

    // one head

    const map = $("map");
    const canvas = map.querySelector("canvas");
    const view = { rows: [], bytes: null, image: null, row: 0, key: 0, zoom: 1, top: 0, left: 0, tall: 1, wide: 1, area: null };
    const tokenText = (token) => visible(tokens[token]).trim() || "·";
    const wordText = (token) => {
      const word = words[about.words[token]];
      const piece = tokenText(token);
      if (!word || kinds[token] < 2 || word.text === piece) return piece;
      return `${visible(word.text)} (${piece})`;
    };
    const kindName = (token) => names[KINDS[kinds[token]]].replace("rest of the ", "");

    const maxZoom = () => 2 ** Math.max(0, Math.ceil(Math.log2(size / 16)));
    const loadHead = () => {
      const { layer, head } = selected;
      const single = $(`H${two(layer)}-${head}`);
      const whole = about.full || single;
      view.rows = whole ? tokens.map((_, i) => i) : about.rows;
      const cells = view.rows.length * size;
      view.bytes = single ? block(single.id) : block(`${about.full ? "L" : "R"}${two(layer)}`).subarray(head * cells, (head + 1) * cells);
      view.image = picture(view.bytes, size, view.rows.length);
      return whole;
    };
    const showHead = () => {
      const before = view.rows[view.row];
      const whole = loadHead();
      let at = view.rows.indexOf(before === undefined ? about.answer_rows[0] : before);
      if (at < 0) at = Math.max(0, view.rows.indexOf(about.answer_rows[0]));
      view.row = at;
      if (before === undefined) view.key = strongest();
      const [relevance, spread, first, other, diagonal] = selected.numbers;
      $("head-title").textContent = `Layer ${selected.layer}, head ${selected.head}`;
      $("head-text").textContent =
        `Relevance ${relevance.toFixed(2)}, spread ${spread.toFixed(2)}; ${percent(first)} of its attention on ${names.first}, ${percent(other)} on ${names.other}, ${percent(diagonal)} on neighbours.` +
        (whole ? "" : " This file holds its rows of the answer and the question only; the most relevant heads are held in full.");
      map.setAttribute("aria-label", `Attention of layer ${selected.layer}, head ${selected.head}`);
      drawMap();
      report();
    };
    const strongest = () => {
      const from = view.row * size;
      let best = 0;
      for (let key = 0; key < size; key++) {
        if (kinds[key] > 1 && view.bytes[from + key] >= view.bytes[from + best]) best = key;
      }
      return best;
    };

    const drawMap = () => {
      const width = Math.max(240, Math.min(704, map.clientWidth));
      const few = view.rows.length < size && view.rows.length < 96;
      const [left, top, right] = [few ? Math.min(110, width * 0.24) : 12, 62, 48];
      const across = width - left - right;
      const high = few ? view.rows.length * clamp(Math.floor(320 / view.rows.length), 5, 18) : across;
      const context = sized(canvas, width, top + high + 2);
      view.wide = size / view.zoom;
      view.tall = few ? view.rows.length : view.rows.length / view.zoom;
      view.left = clamp(view.left, 0, size - view.wide);
      view.top = clamp(view.top, 0, view.rows.length - view.tall);
      view.area = { left, top, across, high };
      const [cellX, cellY] = [across / view.wide, high / view.tall];
      const X = (key) => left + (key - view.left) * cellX;
      const Y = (row) => top + (row - view.top) * cellY;
      const visibleKeys = [Math.floor(view.left), Math.min(size, Math.ceil(view.left + view.wide))];
      const visibleRows = [Math.floor(view.top), Math.min(view.rows.length, Math.ceil(view.top + view.tall))];

      context.save();
      context.beginPath();
      context.rect(left, top, across, high);
      context.clip();
      context.imageSmoothingEnabled = cellX < 1;
      context.drawImage(view.image, view.left, view.top, view.wide, view.tall, left, top, across, high);
      context.strokeStyle = colour("strong-rule");
      context.globalAlpha = 0.55;
      context.lineWidth = 1;
      for (let key = Math.max(1, visibleKeys[0]); key < visibleKeys[1]; key++) {
        if (kinds[key] !== kinds[key - 1]) context.strokeRect(Math.round(X(key)) + 0.5, top - 1, 0, high + 2);
      }
      for (let row = Math.max(1, visibleRows[0]); row < visibleRows[1]; row++) {
        if (kinds[view.rows[row]] !== kinds[view.rows[row - 1]]) context.strokeRect(left - 1, Math.round(Y(row)) + 0.5, across + 2, 0);
      }
      context.globalAlpha = 1;
      context.strokeStyle = colour("answer");
      context.lineWidth = 1.5;
      context.strokeRect(X(view.key) - 1, top - 2, cellX + 2, high + 4);
      context.strokeRect(left - 2, Y(view.row) - 1, across + 4, cellY + 2);
      context.restore();

      for (let key = visibleKeys[0]; key < visibleKeys[1]; key++) {
        const [from, to] = [clamp(X(key), left, left + across), clamp(X(key + 1), left, left + across)];
        context.fillStyle = colour(KINDS[kinds[key]]);
        context.fillRect(from, top - 8, Math.max(0.5, to - from), 6);
        const tall = (top - 14) * Math.sqrt(weight(view.bytes[view.row * size + key]));
        context.fillStyle = key === view.key ? colour("answer") : colour("accent");
        context.fillRect(from, top - 11 - tall, Math.max(0.75, to - from - (cellX > 4 ? 1 : 0)), tall);
      }
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "middle";
      context.textAlign = "right";
      for (let row = visibleRows[0]; row < visibleRows[1]; row++) {
        const [from, to] = [clamp(Y(row), top, top + high), clamp(Y(row + 1), top, top + high)];
        context.fillStyle = colour(KINDS[kinds[view.rows[row]]]);
        context.fillRect(left - 8, from, 6, Math.max(0.5, to - from));
        const long = (right - 6) * Math.sqrt(weight(view.bytes[row * size + view.key]));
        context.fillStyle = row === view.row ? colour("answer") : colour("accent");
        context.fillRect(left + across + 4, from, long, Math.max(0.75, to - from - (cellY > 4 ? 1 : 0)));
        if (few && cellY >= 10) {
          context.fillStyle = row === view.row ? colour("ink") : colour("soft");
          context.fillText(tokenText(view.rows[row]).slice(0, 14), left - 13, (from + to) / 2);
        }
      }
    };

    const top = (entries) => {
      const found = entries.sort((a, b) => b.value - a.value).slice(0, 8);
      return found.map(({ token, value }) => [wordText(token), kindName(token), value.toFixed(3), track(value, 0, Math.max(1e-9, found[0].value), "for")]);
    };
    const HEADS = [{ kind: "word", header: true }, {}, { kind: "number" }, { kind: "bar" }];
    const report = () => {
      const query = view.rows[view.row];
      const value = weight(view.bytes[view.row * size + view.key]);
      $("readout").replaceChildren(
        el("b", { dir: "auto" }, `${wordText(query)} → ${wordText(view.key)}`),
        el("span", {}, `weight ${value.toFixed(3)}; from token ${query} (${kindName(query)}) to token ${view.key} (${kindName(view.key)})`));
      rows($("row-table"), `Where "${wordText(query)}" looks`, HEADS,
        top(Array.from({ length: size }, (_, token) => ({ token, value: weight(view.bytes[view.row * size + token]) }))));
      rows($("column-table"), `Who looks at "${wordText(view.key)}"`, HEADS,
        top(view.rows.map((token, row) => ({ token, value: weight(view.bytes[row * size + view.key]) }))));
    };

    const follow = () => {
      const margin = 2;
      view.left = clamp(view.left, view.key + 1 + margin - view.wide, view.key - margin);
      view.top = clamp(view.top, view.row + 1 + margin - view.tall, view.row - margin);
    };
    const zoom = (factor) => {
      const next = clamp(view.zoom * factor, 1, maxZoom());
      if (next === view.zoom) return;
      view.zoom = next;
      view.left = view.key + 0.5 - size / next / 2;
      view.top = view.row + 0.5 - view.rows.length / next / 2;
      drawMap();
    };
    const moveTo = (row, key) => {
      row = clamp(row, 0, view.rows.length - 1);
      key = clamp(key, 0, size - 1);
      if (row === view.row && key === view.key) return;
      [view.row, view.key] = [row, key];
      follow();
      drawMap();
      report();
    };
    map.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1;
      const moves = { ArrowRight: [0, step], ArrowLeft: [0, -step], ArrowDown: [step, 0], ArrowUp: [-step, 0] };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (moves[event.key]) moveTo(view.row + moves[event.key][0], view.key + moves[event.key][1]);
      else if (event.key === "+" || event.key === "=") zoom(2);
      else if (event.key === "-") zoom(0.5);
      else if (event.key === "0") zoom(1 / view.zoom);
      else return;
      event.preventDefault();
    });
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const { left, top: above, across, high } = view.area;
      const [x, y] = [(event.clientX - box.left - left) / across, (event.clientY - box.top - above) / high];
      if (x < 0 || x >= 1 || y < 0 || y >= 1) return;
      moveTo(Math.floor(view.top + y * view.tall), Math.floor(view.left + x * view.wide));
    };
    let held = false; // a click holds the cross where it is
    canvas.addEventListener("pointermove", (event) => {
      if (!held && event.pointerType === "mouse") point(event);
    });
    canvas.addEventListener("pointerdown", (event) => {
      held = !held || event.pointerType !== "mouse";
      point(event);
    });
    $("zoom-in").addEventListener("click", () => zoom(2));
    $("zoom-out").addEventListener("click", () => zoom(0.5));
    $("save-map").addEventListener("click", () =>
      canvas.toBlob((blob) => save(`attention-layer-${selected.layer}-head-${selected.head}.png`, blob)));

    const swatches = (list, used) =>
      list.append(...used.map((kind) => el("li", {}, el("span", { className: `swatch ${KINDS[kind]}` }), names[KINDS[kind]])));
    const used = [2, 4, 3, 0, 1].filter((kind) => kinds.includes(kind));
    swatches($("bands"), used);

    // the layers

    const drawProfile = () => {
      const [wide, high, gap, left] = [Math.min(704, $("profile").clientWidth), 14, 4, 24];
      const picture = svg("svg", { viewBox: `0 0 ${wide} ${about.layers.length * (high + gap)}`, role: "img", "aria-label": "Shares of attention by layer. The numbers are in the table below." });
      about.layers.forEach((layer, i) => {
        let x = left;
        const y = i * (high + gap);
        picture.append(svg("text", { x: left - 8, y: y + high - 3, "text-anchor": "end" }, String(layer)));
        for (const kind of used) {
          const share = (wide - left) * about.profile[layer][kind];
          picture.append(svg("rect", { class: KINDS[kind], x: x.toFixed(1), y, width: Math.max(0, share - 1).toFixed(1), height: high }));
          x += share;
        }
      });
      $("profile").replaceChildren(picture);
    };
    swatches($("profile-legend"), used);
    $("profile-text").textContent = `Where the rows of ${rowsFrom} look, as shares of their attention: mean of the ${heads} heads of each layer.`;
    rows($("profile-table"), "Shares of attention", [
      { text: "layer", header: true, kind: "number" }, ...used.map((kind) => ({ text: names[KINDS[kind]], kind: "number" })),
    ], about.layers.map((layer) => [String(layer), ...used.map((kind) => percent(about.profile[layer][kind]))]));

    const draw = () => {
      introduce();
      drawAtlas();
      showHead();
      drawProfile();
    };
    draw();
    dark.addEventListener("change", draw);
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth === width) return;
      width = innerWidth;
      draw();
    });
    performance.mark("drawn");
  };

  drawAnswer();
  drawCurves();
  drawWords();
  performance.mark("answered");
  document.addEventListener("DOMContentLoaded", () => {
    if ($("attention")) drawAttention();
  });
})();
