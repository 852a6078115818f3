// Requests to the API, with the user's key.

import { session } from "./session.js";
import { lines } from "./lines.js";

/** What the API answered where it refused; `status` 0: nobody answered. */
export class ApiError extends Error {
  constructor(status, { message, code = null, param = null } = {}) {
    super(message || `The server answered ${status}.`);
    Object.assign(this, { status, code, param });
  }
}

/** A request; the answer as JSON. */
export async function call(method, path, body, { signal } = {}) {
  return (await ask(method, path, body, signal)).json();
}

export const get = (path, options) => call("GET", path, undefined, options);
export const post = (path, body, options) => call("POST", path, body, options);
export const remove = (path, options) => call("DELETE", path, undefined, options);

/** A request; the answer as it comes. Raises ApiError. */
export async function ask(method, path, body, signal, key = session.key) {
  const headers = { Authorization: `Bearer ${key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, sent);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server does not answer. Is it running?" });
  }
  if (response.ok) return response;
  throw refused(response.status, await response.text(), key);
}

function refused(status, text, key) {
  const error = new ApiError(status, errorIn(text));
  if (status === 401 && key === session.key) session.end(error.message);
  return error;
}

function errorIn(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return {};
  }
}

/** What server-sent events say, one after another as JSON, up to `[DONE]`. Raises ApiError; also where a stream breaks off. */
export async function* stream(method, path, body, signal) {
  const response = await ask(method, path, body, signal);
  try {
    for await (const line of lines(response.body)) {
      if (!line.startsWith("data:")) continue;
      const said = line.slice(5).trim();
      if (said === "[DONE]") return;
      const event = JSON.parse(said);
      if (event.error) throw new ApiError(500, event.error);
      yield event;
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // what a browser calls a broken connection
  }
  throw new ApiError(0, { message: "The connection was lost." });
}

/** All pages of a list, at most `most` things. */
export async function all(path, { signal, most = 1000 } = {}) {
  const found = [];
  let after = "";
  while (found.length < most) {
    const glue = path.includes("?") ? "&" : "?";
    const page = await get(after ? `${path}${glue}after=${encodeURIComponent(after)}` : path, { signal });
    found.push(...page.data);
    if (!page.has_more || !page.data.length) break;
    after = page.data.at(-1).id;
  }
  return found;
}

/** Upload a file; `progress` is told the share that has been sent, 0 to 1. */
export function upload(file, progress, signal) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file);
  // fetch does not tell how much has been sent
  const request = new XMLHttpRequest();
  return new Promise((done, failed) => {
    request.open("POST", "/v1/files");
    request.setRequestHeader("Authorization", `Bearer ${session.key}`);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && progress(event.loaded / event.total));
    request.addEventListener("load", () =>
      request.status < 300 ? done(JSON.parse(request.response)) : failed(refused(request.status, request.response, session.key)),
    );
    request.addEventListener("error", () => failed(new ApiError(0, { message: "The upload broke off. Is the server running?" })));
    request.addEventListener("abort", () => failed(new DOMException("aborted", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
