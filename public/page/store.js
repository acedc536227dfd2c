// What the page knows, and all that can be done with it. The elements show `page.state` and call
// what is here; nothing else changes the state.
import { addPiece, cutBefore, findPiece, idsOf, newDocument, newPiece, pieces, promptOf, readDocument, textOf, tokensOf } from './document.js';
import { linkTo, readLink, saveAs } from './share.js';
import { USUAL, readSettings } from './settings.js';

const STORE = 'story-page';
const MAX_DOCUMENTS = 20;
const MAX_STORED = 2_000_000; // characters; browsers give five million
const COMPARED = [0, 0.8, 1.5]; // temperatures

const newRun = () => crypto.randomUUID?.() ?? `run ${Math.random()}`; // none over plain HTTP
const nothingOpen = { chosen: null, open: false, bars: null, compared: null };

function load() {
  let raw;
  try {
    raw = JSON.parse(localStorage.getItem(STORE));
  } catch {} // junk, or a browser that keeps nothing
  const list = Array.isArray(raw?.documents) ? raw.documents : [];
  const documents = list.slice(0, MAX_DOCUMENTS).map(readDocument).filter(Boolean);
  const shown = documents.some((document) => document.id === raw.shown) ? raw.shown : null;
  return { documents, shown, settings: readSettings(raw?.settings) };
}

function save() {
  const { shown, settings } = page.state;
  const latest = new Map(); // other tabs have stored theirs
  for (const document of [...load().documents, ...page.state.documents])
    if (document.changed >= (latest.get(document.id)?.changed ?? 0)) latest.set(document.id, document);
  const documents = [...latest.values()].sort((one, other) => other.changed - one.changed);
  for (let count = Math.min(documents.length, MAX_DOCUMENTS); count >= 0; count--) {
    const stored = JSON.stringify({ documents: documents.slice(0, count), shown, settings });
    if (stored.length > MAX_STORED) continue;
    try {
      return localStorage.setItem(STORE, stored);
    } catch {} // it is full: keep fewer
  }
}

const link = readLink(location.href);
const listeners = new Set();
let saving;

export const page = {
  state: {
    ...load(),
    ...(link && { settings: link.settings, shown: null }),
    linked: link?.prompt, // a prompt that came with the link, until it is generated from
    view: 'plain', // plain, probs, copied, drafts, attention
    running: null, // which generation is under way
    head: null, // of the attention view: { layer, head }, or null for the mean of all
    unfolded: false,
    known: {}, // what the server has told of places in the text, by question
    connected: false,
    reading: false, // the story
    place: null, // in the story, that is marked: { start, length }
    ...nothingOpen
  },

  subscribe(listener) {
    listeners.add(listener);
    return () => listeners.delete(listener);
  },
  get: () => page.state,
  set(changes) {
    page.state = { ...page.state, ...changes };
    for (const listener of listeners) listener();
    saving ??= setTimeout(() => ((saving = null), save()), 500);
  },
  // The first of each name stays, so that its state survives when Chainlit reads an element again.
  components: {},
  component: (name, component) => (page.components[name] ??= component),

  document: () => page.state.documents.find((document) => document.id === page.state.shown),

  // 1. Settings

  change(settings) {
    page.set({ settings: { ...page.state.settings, ...settings } });
    page.sendSettings();
  },
  reset: () => page.change(USUAL),
  sendSettings: () => page.socket?.emit('chat_settings_change', page.state.settings),

  // 2. From the server

  // Called by the element Connection, which also gives Chainlit's callAction and sendUserMessage as
  // `call` and `send`.
  connect(socket) {
    page.socket = socket;
    const events = { connect: page.onConnect, prompt: page.onPrompt, tokens: page.onTokens, finished: page.onFinished, task_end: page.onEnd };
    for (const [name, handler] of Object.entries(events)) socket.on(name, handler);
    page.sendSettings();
    page.set({ connected: true });
    return () => Object.entries(events).forEach(([name, handler]) => socket.off(name, handler));
  },

  // What was under way may have ended, or failed. If it goes on, its tokens tell.
  onConnect() {
    page.sendSettings();
    page.onEnd();
  },
  onEnd: () => page.set({ running: null }),

  // The server has read a prompt: a new document begins.
  onPrompt({ run, tokens, before }) {
    if (page.state.linked) history.replaceState(null, '', location.pathname + location.search);
    const document = newDocument(run, tokens, before);
    addPiece(document.root, newPiece([], { run }));
    const documents = [document, ...page.state.documents].slice(0, MAX_DOCUMENTS);
    page.set({ ...nothingOpen, documents, shown: run, running: run, linked: null, unfolded: false });
  },

  onTokens({ run, tokens }) {
    const compared = page.state.compared?.find((text) => text.run === run);
    if (compared) compared.tokens.push(...tokens);
    page.find(run)?.tokens.push(...tokens);
    page.set({ running: compared ? 'compare' : run });
  },

  // All of it comes again: somebody who was away has missed a part.
  onFinished({ run, tokens, facts, share, settings }) {
    const compared = page.state.compared?.find((text) => text.run === run);
    if (compared) Object.assign(compared, { tokens, share });
    const piece = page.find(run);
    if (piece) {
      // What was already cut away by choosing another token stays away.
      if (!piece.children.length) piece.tokens = [...(piece.first ?? []), ...tokens];
      Object.assign(piece, { facts, settings });
    }
    page.set({ running: page.state.running === run ? null : page.state.running });
  },

  find(run) {
    for (const document of page.state.documents) {
      const piece = findPiece(document, run);
      if (piece) return piece;
    }
  },

  // 3. Going on

  generate(parent, ids, more = {}, first = []) {
    const run = newRun();
    addPiece(parent, newPiece([...first], { run, first }));
    page.document().changed = Date.now();
    page.set({ ...nothingOpen, running: run });
    return page.request('generate', { ids, runs: [{ run }], ...more }).then(() => page.state.running === run && page.onEnd());
  },

  // The server's answer; undefined if there was none, of which Chainlit tells.
  async request(name, payload) {
    try {
      return (await page.call({ name, payload })).response ?? null;
    } catch {
      return undefined;
    }
  },

  goOn() {
    const document = page.document();
    return page.generate(pieces(document).at(-1), idsOf(document));
  },

  // Another continuation in place of the last one, which stays behind ‹ ›.
  again() {
    const document = page.document();
    const shown = pieces(document);
    const last = shown.pop();
    if (!shown.length) return page.generate(last, idsOf(document), { new_seed: true });
    const { first = [] } = last; // a token that was chosen stays
    const ids = [...shown.flatMap((piece) => piece.tokens), ...first].map((token) => token.id);
    return page.generate(shown.at(-1), ids, { new_seed: true }, first);
  },

  // Go on from another token in the place of this one.
  choose(index, token) {
    const document = page.document();
    const ids = [...idsOf(document).slice(0, index), token.id];
    return page.generate(cutBefore(document, index), ids, {}, [token]);
  },

  show(piece, step) {
    piece.at = (piece.at + step + piece.children.length) % piece.children.length;
    page.document().changed = Date.now();
    page.set({ ...nothingOpen });
  },

  compare() {
    const ids = promptOf(page.document()).map((token) => token.id);
    const compared = COMPARED.map((temperature) => ({ temperature, run: newRun(), tokens: [] }));
    page.set({ ...nothingOpen, compared, running: 'compare' });
    const runs = compared.map(({ run, temperature }) => ({ run, temperature }));
    return page.request('generate', { ids, runs }).then(() => page.state.running === 'compare' && page.onEnd());
  },

  begin: () => page.set({ ...nothingOpen, shown: null }),
  open: (id) => page.set({ ...nothingOpen, shown: id, unfolded: false }),

  // 4. Looking

  // What the server says of this row of ids, asked once. Undefined until it has come.
  look(what, ids) {
    if (!ids.length) return undefined;
    const key = `${what} ${ids.join(' ')}`;
    const { known } = page.state;
    if (!(key in known) && page.call) {
      const latest = Object.entries(known).slice(-30);
      page.state.known = { ...Object.fromEntries(latest), [key]: undefined };
      page.request('look', { what, ids }).then((answer) => {
        if (answer === undefined) delete page.state.known[key]; // it can be asked again
        else page.set({ known: { ...page.state.known, [key]: answer } });
      });
    }
    return known[key];
  },

  // The ids that the model has read before the token at this place, or up to its end; at most 256.
  read(index, end = index) {
    const tokens = tokensOf(page.document());
    const { seen = 256 } = tokens[index] ?? {};
    return tokens.slice(Math.max(0, index - seen, end - 256), end).map((token) => token.id);
  },

  async openStory(place = null) {
    page.story ??= await page.request('story', {});
    page.set({ reading: Boolean(page.story), place, open: false });
  },
  closeStory: () => page.set({ reading: false }),

  pick: (chosen, open = true) => page.set({ chosen, open }),
  close: () => page.set({ open: false }),

  // 5. Sharing

  text: () => textOf(page.document()),
  // It makes the first continuation again, with its settings and seed.
  link() {
    const document = page.document();
    const prompt = promptOf(document).map((token) => token.text).join('');
    const made = pieces(document).find((piece) => piece.tokens.some((token) => token.draft !== undefined));
    return linkTo(location.href, prompt, made?.settings ?? page.state.settings);
  },
  save() {
    saveAs('text.txt', page.text());
  }
};

addEventListener('pagehide', () => saving && save());
addEventListener('hashchange', () => location.reload()); // a link, opened where the page is already
