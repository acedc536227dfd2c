// If the browser allows no storage, use memory instead: without either, Chainlit does not start.
export let stores = true; // beyond this visit

class Memory extends Map {
  getItem = (key) => this.get(key) ?? null;
  setItem = (key, value) => void this.set(key, String(value));
  removeItem = (key) => void this.delete(key);
}

for (const name of ['localStorage', 'sessionStorage'])
  try {
    window[name].getItem('');
  } catch {
    stores = false;
    Object.defineProperty(window, name, { value: new Memory() });
  }
