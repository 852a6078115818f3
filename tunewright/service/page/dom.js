// Elements, made from what they hold. Text is always text: nothing that a server or a file says becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `el("p.note", { id: "x", onclick: f }, "text", other)`. null, undefined and false are left out. */
export function el(tag, ...rest) {
  return filled(document.createElement(tag.split(".")[0]), tag, rest);
}

/** The same for SVG. */
export function svg(tag, ...rest) {
  return filled(document.createElementNS(SVG, tag.split(".")[0]), tag, rest);
}

function filled(node, tag, rest) {
  const classes = tag.split(".").slice(1);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  const hasOptions = rest[0] && Object.getPrototypeOf(rest[0]) === Object.prototype;
  for (const [name, value] of Object.entries(hasOptions ? rest.shift() : {})) set(node, name, value);
  node.append(...rest.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  return node;
}

function set(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "value" && "value" in node) node.value = value;
  else node.setAttribute(name, value === true ? "" : value);
}

let made = 0;

/** An id that no other element has. */
export function fresh(word = "e") {
  made += 1;
  return `${word}-${made}`;
}

/** A control with its label above it, and a hint below. */
export function field(name, control, hint = null) {
  control.id ||= fresh("field");
  const note = hint && el("p.hint", { id: `${control.id}-hint` }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return el("div.field", el("label", { for: control.id }, name), control, note);
}

/** Radio buttons: [[value, name], …]. The one that is chosen is `chosenOf(fieldset)`. */
export function choices(legend, pairs, chosen, onchange) {
  const group = fresh("group");
  const one = ([value, name]) =>
    el("label.choice", el("input", { type: "radio", name: group, value, checked: value === chosen, onchange }), name);
  return el("fieldset", el("legend", legend), el("div.choices", pairs.map(one)));
}

export function chosenOf(fieldset) {
  return fieldset.querySelector("input:checked").value;
}

/** A <select>: options are values, or [value, name]; groups are { name: options }. */
export function select(options, chosen, onchange) {
  const one = (option) => {
    const [value, name] = Array.isArray(option) ? option : [option, option];
    return el("option", { value, selected: value === chosen }, name);
  };
  const groups = Array.isArray(options)
    ? options.map(one)
    : Object.entries(options).filter(([, all]) => all.length).map(([name, all]) => el("optgroup", { label: name }, all.map(one)));
  return el("select", { onchange }, groups);
}

/** A button that is disabled while what it does is being done; an error goes to `failed`. */
export function button(name, act, { kind = "", failed = null, ...rest } = {}) {
  const node = el(`button${kind && `.${kind}`}`, { type: "button", ...rest }, name);
  node.addEventListener("click", () => busy(node, act, failed));
  return node;
}

/** Do something that takes a while, once. The focus stays where it was. */
export async function busy(node, act, failed) {
  if (node.getAttribute("aria-busy") === "true") return;
  node.setAttribute("aria-busy", "true");
  try {
    await act();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!failed) throw error;
    failed(error);
  } finally {
    node.removeAttribute("aria-busy");
  }
}
