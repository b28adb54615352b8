/** An error with the server's message. */
export class Refusal extends Error {}

/** Sends a GET request and returns its JSON. */
export async function ask(path, parameters = {}) {
  const response = await reached(`api/${path}?${new URLSearchParams(parameters)}`);
  return response.json();
}

/**
 * Sends a POST request and yields the events of its answer as they arrive.
 *
 * @param {string} path
 * @param {Object} request
 * @param {AbortSignal} signal
 */
export async function* stream(path, request, signal) {
  const response = await reached(`api/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function reached(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is `regen demo` still running?");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Refusal(answer.detail ?? `The server answered ${response.status}.`);
}
