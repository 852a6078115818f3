// The key: kept for this tab only, never in an address.

const NAME = "tunewright-key";

export const session = {
  get key() {
    return sessionStorage.getItem(NAME);
  },
  begin(key) {
    sessionStorage.setItem(NAME, key);
    dispatchEvent(new CustomEvent("session"));
  },
  end(why = "") {
    sessionStorage.removeItem(NAME);
    dispatchEvent(new CustomEvent("session", { detail: why }));
  },
};
