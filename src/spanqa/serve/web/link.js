/** A question and its text as the fragment of a link, which browsers do not send to any server. Nothing is written without being asked for. */

const LONGEST_LINK = 30_000; // characters: what chats, mails and address bars carry
const LONGEST_TEXT = 4_000_000; // characters that a link may unfold to

const toBase64 = (bytes) => {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
};
const fromBase64 = (text) => Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (each) => each.charCodeAt(0));

const through = (bytes, stream) => new Blob([bytes]).stream().pipeThrough(stream);

/** The link, or null where it would be too long. */
export async function makeLink(question, text) {
  const bytes = new TextEncoder().encode(JSON.stringify({ question, text }));
  let fragment = `p=${toBase64(bytes)}`;
  if ("CompressionStream" in window) {
    const packed = await new Response(through(bytes, new CompressionStream("deflate-raw"))).arrayBuffer();
    fragment = `z=${toBase64(new Uint8Array(packed))}`;
  }
  const link = `${location.origin}${location.pathname}#${fragment}`;
  return link.length <= LONGEST_LINK ? link : null;
}

/** Take what the address bar holds out of it, and return {question, text}, null where there is nothing, or undefined where it cannot be read. */
export async function takeLink() {
  const fragment = location.hash.slice(1);
  if (!fragment) return null;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    const found = JSON.parse(await unfold(fragment.slice(0, 2), fromBase64(fragment.slice(2))));
    if (typeof found.question === "string" && typeof found.text === "string") return found;
  } catch {
    // a link that was cut or made up
  }
  return undefined;
}

async function unfold(kind, bytes) {
  if (kind === "p=") return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  if (kind !== "z=") throw new Error("unknown kind of link");
  const reader = through(bytes, new DecompressionStream("deflate-raw")).getReader();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return text + decoder.decode();
    text += decoder.decode(value, { stream: true });
    if (text.length > LONGEST_TEXT) throw new Error("too long");
  }
}
