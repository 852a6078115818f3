// What is shown for which address: `#/jobs`, `#/jobs/ftjob-…`, `#/new`, … Each view is a module with `show`.

import { el } from "./dom.js";
import { notice, say } from "./say.js";
import { session } from "./session.js";
import * as create from "./create.js";
import * as files from "./files.js";
import * as job from "./job.js";
import * as jobs from "./jobs.js";
import * as keys from "./keys.js";
import * as models from "./models.js";
import * as playground from "./playground.js";
import * as signin from "./signin.js";

const VIEWS = { jobs, new: create, playground, models, files, keys };
const NAMES = { jobs: "Jobs", new: "New job", playground: "Playground", models: "Models", files: "Files", keys: "Keys" };

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const signOut = document.getElementById("sign-out");
let leave = new AbortController();
let first = true;

/** `#/jobs/ftjob-1?x=y` → its view, the rest of the path, and the query. */
function place() {
  const [path, query = ""] = location.hash.slice(2).split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  const known = Object.hasOwn(VIEWS, name) ? name : "jobs";
  return { name: known, id: rest.join("/"), query: new URLSearchParams(query) };
}

async function render(why = "") {
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const here = place();
  drawFrame(session.key ? here.name : null);
  main.replaceChildren();
  main.setAttribute("aria-busy", "true");
  const view = session.key ? (here.name === "jobs" && here.id ? job : VIEWS[here.name]) : signin;
  try {
    await view.show(main, { ...here, signal, why });
  } catch (error) {
    if (signal.aborted) return;
    main.append(...unshown(error, here.name));
  }
  if (!signal.aborted) arrive();
}

/** A key that may not see this section may see others. */
function unshown(error, name) {
  const heading = (text) => el("h1", { tabindex: "-1" }, text);
  if (error.status !== 403) return [heading("This could not be shown"), notice(error)];
  return [heading(NAMES[name]), notice(error, "Not with this key"),
    el("p.note", "The other sections may be open to it: a key that may ask models has the ", el("a", { href: "#/playground" }, "Playground"), ".")];
}

/** A new view begins at its heading, for those who see it and those who hear it. */
function arrive() {
  main.removeAttribute("aria-busy");
  const heading = main.querySelector("h1");
  document.title = heading ? `${heading.textContent} · Tunewright` : "Tunewright";
  if (!first && !main.contains(document.activeElement)) heading?.focus();
  first = false;
}

function drawFrame(current) {
  nav.hidden = signOut.hidden = current === null;
  const link = ([name, title]) => el("a", { href: `#/${name}`, "aria-current": name === current && "page" }, title);
  nav.replaceChildren(...Object.entries(NAMES).map(link));
}

signOut.addEventListener("click", () => session.end());
addEventListener("hashchange", () => render());
addEventListener("session", (event) => {
  if (!session.key) say("You are signed out.");
  render(event.detail || "");
});
addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") return;
  if (event.reason?.status !== 401) main.prepend(notice(event.reason));
});

render();
