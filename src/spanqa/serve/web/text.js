/** The text as it is read. It is shown in blocks of a few thousand characters; a mark touches only the blocks in which it lies. */

const BLOCK = 2_000; // UTF-16 units; a block ends with a line
const LONGEST_BLOCK = 20_000; // lines that are longer are broken

export const $ = (id) => document.getElementById(id);

/** An element with properties; children are nodes or texts, never markup. */
export const el = (name, properties = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
};

/** Characters that cannot be seen, or that reorder the text, as symbols of one UTF-16 unit. */
export const visible = (text) =>
  text.replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]/g, (found) => {
    const code = found.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : code === 127 ? "\u2421" : "\u241a";
  });

/** A function from places in code points, as servers count them, to places in UTF-16 units, as strings of JavaScript are indexed. */
export const utf16 = (text) => {
  const pairs = []; // places, in code points, of characters that are two units
  let units = 0;
  if (/[\ud800-\udbff]/.test(text)) {
    for (let at = 0; at < text.length; at++, units++) {
      if (text.codePointAt(at) > 0xffff) {
        pairs.push(units);
        at++;
      }
    }
  }
  return (place) => {
    let [low, high] = [0, pairs.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (pairs[middle] < place) low = middle + 1;
      else high = middle;
    }
    return place + low;
  };
};

/** Where the blocks of a text end. */
function* cuts(text) {
  for (let start = 0; start < text.length;) {
    let end = text.indexOf("\n", start + BLOCK) + 1 || text.length;
    if (end - start > LONGEST_BLOCK) {
      const space = text.lastIndexOf(" ", start + LONGEST_BLOCK);
      end = space > start ? space + 1 : start + LONGEST_BLOCK;
      if (/[\udc00-\udfff]/.test(text[end])) end++;
    }
    yield [start, end];
    start = end;
  }
}

/** Show texts in `box`: `show(text)`, then `draw(marks, words)` and `reveal()`. `choose(number)` is called when a mark is clicked. */
export function makeReading(box, choose) {
  let blocks = [];
  let touched = [];

  const show = (text) => {
    blocks = [...cuts(text)].map(([start, end]) => ({ start, end, text: visible(text.slice(start, end)), node: el("div", { className: "block" }) }));
    for (const block of blocks) block.node.textContent = block.text;
    box.replaceChildren(...blocks.map((block) => block.node));
    touched = [];
  };

  /**
   * Marks are {start, end, kind, label, number}, words {start, end, score}, with `most` the largest score; places are in UTF-16 units.
   * Marks do not overlap each other, and words neither.
   */
  const draw = (marks, words = [], most = 1) => {
    for (const block of touched) block.node.textContent = block.text;
    touched = blocks.filter((block) => [...marks, ...words].some((each) => each.start < block.end && block.start < each.end));
    for (const block of touched) {
      const inside = (each) => each.start < block.end && block.start < each.end;
      fill(block, marks.filter(inside), words.filter(inside), most);
    }
  };

  const fill = (block, marks, words, most) => {
    const bounds = new Set([block.start, block.end]);
    for (const each of [...marks, ...words]) {
      for (const place of [each.start, each.end]) if (place > block.start && place < block.end) bounds.add(place);
    }
    const places = [...bounds].sort((a, b) => a - b);
    const nodes = places.slice(1).map((right, i) => {
      const left = places[i];
      const within = (each) => each.start <= left && right <= each.end;
      let node = block.text.slice(left - block.start, right - block.start);
      const word = words.find(within);
      if (word) {
        node = el("span", { className: `w ${word.score > 0 ? "for" : "against"}` }, node);
        node.style.setProperty("--s", Math.abs(word.score / most).toFixed(3));
      }
      const mark = marks.find(within);
      if (!mark) return node;
      const edges = `${mark.start === left ? " begins" : ""}${mark.end === right ? " ends" : ""}`;
      const label = mark.start === left ? [el("span", { className: "hidden" }, `${mark.label}: `)] : [];
      const made = el("mark", { className: mark.kind + edges }, ...label, node);
      if (mark.number !== undefined) made.addEventListener("click", () => getSelection().isCollapsed && choose(mark.number));
      return made;
    });
    block.node.replaceChildren(...nodes);
  };

  /** Scroll the box, and nothing else, to its first mark of this kind. Heights of blocks out of sight are estimates: look again. */
  const reveal = (kind, tries = 4) => {
    const mark = box.querySelector(`mark.${kind}`);
    if (!mark) return;
    const [inner, outer] = [mark.getBoundingClientRect(), box.getBoundingClientRect()];
    const margin = Math.min(60, outer.height / 6);
    if (inner.top >= outer.top + margin && inner.bottom <= outer.bottom - margin) return;
    box.scrollTop += inner.top - outer.top - outer.height / 3;
    if (tries) requestAnimationFrame(() => reveal(kind, tries - 1));
  };

  return { show, draw, reveal };
}
