/** What the page asks its server, and what went wrong in plain words. */

/** `kind`: key, busy, loading, late, refused, broken or network; `seconds`: when to ask again. */
export class Refusal extends Error {
  constructor(kind, message, seconds = null) {
    super(message);
    this.kind = kind;
    this.seconds = seconds;
  }
}

const BASE = new URL(".", location.href); // works under any path that a proxy puts before ours
let key = ""; // held here and nowhere else

export const useKey = (value) => {
  key = value;
};

/** The answer of the server as an object; with `body` it is posted. Throws a Refusal, or AbortError. */
export async function call(path, body = null, signal = null) {
  const headers = { accept: "application/json" };
  if (key) headers["x-api-key"] = key;
  if (body) headers["content-type"] = "application/json";
  let response, found;
  try {
    response = await fetch(new URL(path, BASE), {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal,
      cache: "no-store", credentials: "same-origin", redirect: "error", referrerPolicy: "no-referrer",
    });
    found = await response.json().catch(() => ({}));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("network", "The server cannot be reached. Is it still running?");
  }
  signal?.throwIfAborted();
  if (response.ok) return found;
  throw refusal(response, found);
}

function refusal(response, { error = "", error_type: type = "" }) {
  const seconds = Math.max(1, Number(response.headers.get("retry-after")) || 1);
  switch (response.status) {
    case 401:
      return new Refusal("key", key ? "The server does not know this key." : "This server asks for a key.");
    case 429:
      return new Refusal("busy", type === "rate_limited" ? "You have asked as often as this server allows." : "The server is busy.", seconds);
    case 503:
      return type === "loading" ? new Refusal("loading", "The model is still being loaded.", seconds)
        : new Refusal("busy", "This server is being stopped. Another one may take over.", seconds);
    case 504:
      return new Refusal("late", "The server found no answer in the time that it allows. A shorter text is read faster.");
    case 413:
      return new Refusal("refused", "The text is too long for this server.");
    case 500:
      return new Refusal("broken", "Something went wrong in the server. Its log says more.");
    default:
      return new Refusal("refused", error ? `The server does not accept this: ${error}` : `The server answered with status ${response.status}.`);
  }
}
