// Chat: one message, answered by the base and by the tuned model as it comes, both drawn with the same seed.

import { stream } from "./api.js";
import { busy, el, field } from "./dom.js";
import { showError } from "./say.js";
import { Sides } from "./sides.js";

export function room(signal) {
  const system = el("textarea", { rows: "2" });
  const message = el("textarea", { rows: "3", required: true });
  const temperature = el("input", { type: "number", min: "0", max: "2", step: "0.1", value: "0.7" });
  const longest = el("input", { type: "number", min: "1", step: "1", value: "200" });
  const send = el("button.primary", { type: "submit" }, "Send");
  const failed = el("div");
  const messages = () => [
    ...(system.value.trim() ? [{ role: "system", content: system.value }] : []), { role: "user", content: message.value },
  ];
  // what differs between the answers is the tuning, not the dice: one seed for all of them
  const question = () => ({
    messages: messages(), temperature: Number(temperature.value), max_tokens: Number(longest.value) || undefined, seed: Math.floor(Math.random() * 2 ** 31),
  });
  const sides = new Sides((model, asked, place, over) => speak({ ...asked, model }, place, over), signal);
  const submit = (event) => {
    event.preventDefault();
    showError(failed, message.value.trim() ? null : { message: "Write a message first." }, "Nothing was sent");
    if (message.value.trim()) busy(send, () => sides.ask(question()));
    else message.focus();
  };
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  const form = el("form.form", { onsubmit: submit, novalidate: true },
    field("Message", message, "Ctrl + Enter sends it."),
    el("details", el("summary", "System message, temperature, length"), el("div.form", field("System message", system),
      el("div.pair.small", field("Temperature", temperature, "0: always the likeliest word. All sides draw with the same seed."), field("Longest answer", longest, "In tokens.")))),
    el("div.buttons", send), failed);
  return { node: el("div", form, sides.node), sides };
}

async function speak(body, place, signal) {
  const text = place.appendChild(document.createTextNode(""));
  let finish = null;
  for await (const chunk of stream("POST", "/v1/chat/completions", { ...body, stream: true }, signal)) {
    const [choice] = chunk.choices;
    text.data += choice?.delta?.content ?? "";
    finish = choice?.finish_reason ?? finish;
  }
  if (finish === "length") place.append(el("p.hint", "It was cut off at the longest answer."));
  if (!text.data) place.append(el("p.hint", "The model said nothing."));
}
