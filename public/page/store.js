// The page's state, and every action on it. The elements show `page.state` and call these actions;
// nothing else changes the state.
import { config } from './config.js';
import { addPiece, cutBefore, findPiece, idsOf, newDocument, newPiece, pieces, promptOf, readDocument, textOf, tokensOf } from './document.js';
import { linkTo, readLink, saveAs } from './share.js';
import { defaults, readSettings } from './settings.js';

const STORE = 'story-page';
const MAX_DOCUMENTS = 20;
const MAX_STORED = 2_000_000; // characters; browsers allow five million
const PAUSE = 150; // ms before the next question to the server

const newRun = () => crypto.randomUUID?.() ?? `run ${Math.random()}`; // plain HTTP has no crypto
const nothingOpen = { chosen: null, open: false, bars: null, compared: null };

function load() {
  let raw;
  try {
    raw = JSON.parse(localStorage.getItem(STORE));
  } catch {} // junk, or no storage
  const list = Array.isArray(raw?.documents) ? raw.documents : [];
  const documents = list.slice(0, MAX_DOCUMENTS).map(readDocument).filter(Boolean);
  const shown = documents.some((document) => document.id === raw.shown) ? raw.shown : null;
  return { documents, shown, settings: readSettings(raw?.settings) };
}

function save() {
  const { shown, settings } = page.state;
  const latest = new Map(); // with the texts that other tabs have stored
  for (const document of [...load().documents, ...page.state.documents])
    if (document.changed >= (latest.get(document.id)?.changed ?? 0)) latest.set(document.id, document);
  const documents = [...latest.values()].sort((one, other) => other.changed - one.changed);
  for (let count = Math.min(documents.length, MAX_DOCUMENTS); count >= 0; count--) {
    const stored = JSON.stringify({ documents: documents.slice(0, count), shown, settings });
    if (stored.length > MAX_STORED) continue;
    try {
      return localStorage.setItem(STORE, stored);
    } catch {} // full: store fewer
  }
}

const listeners = new Set();
const asking = new Set(); // kinds of open questions
let saving;

export const page = {
  state: {
    documents: [],
    shown: null,
    settings: null, // until `start`
    linked: null, // the prompt of the link, until it is sent
    view: 'plain', // plain, probs, copied, drafts, attention
    running: null, // the generation in progress
    head: null, // of the attention view: { layer, head }, or null for the average
    unfolded: false,
    known: {}, // the server's answers about the text, by question
    connected: false,
    reading: false, // the story
    place: null, // of the marked passage in the story: { start, length }
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
  // The first component of each name stays, so its state survives when Chainlit loads the element again.
  components: {},
  component: (name, component) => (page.components[name] ??= component),

  document: () => page.state.documents.find((document) => document.id === page.state.shown),

  // 1. Settings

  change(settings) {
    page.set({ settings: { ...page.state.settings, ...settings } });
    page.sendSettings();
  },
  reset: () => page.change(defaults()),
  sendSettings: () => page.socket?.emit('chat_settings_change', page.state.settings),

  // 2. From the server

  // Called by the element Connection, which also gives Chainlit's callAction and sendUserMessage as
  // `call` and `send`.
  connect(socket) {
    page.socket = socket;
    if (!page.state.settings) page.start();
    const events = { connect: page.onConnect, prompt: page.onPrompt, tokens: page.onTokens, finished: page.onFinished, task_end: page.onEnd };
    for (const [name, handler] of Object.entries(events)) socket.on(name, handler);
    page.sendSettings();
    page.set({ connected: true });
    return () => Object.entries(events).forEach(([name, handler]) => socket.off(name, handler));
  },

  // Show the stored texts and the link's prompt. Reading them needs app.py's limits.
  start() {
    const link = readLink(location.href);
    page.set({ ...load(), ...(link && { settings: link.settings, shown: null, linked: link.prompt }) });
  },

  // The generation in progress may have ended meanwhile; if not, its next tokens show it again.
  onConnect() {
    page.sendSettings();
    page.onEnd();
  },
  onEnd: () => page.set({ running: null }),

  // The server has read a prompt, which begins a new document.
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

  // The whole continuation: tokens sent during a disconnect are lost.
  onFinished({ run, tokens, facts, share, settings }) {
    const compared = page.state.compared?.find((text) => text.run === run);
    if (compared) Object.assign(compared, { tokens, share });
    const piece = page.find(run);
    if (piece) {
      // A piece with children was cut by choosing another token: leave it as it is.
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

  // 3. Generation

  generate(parent, ids, more = {}, first = []) {
    const run = newRun();
    addPiece(parent, newPiece([...first], { run, first }));
    page.document().changed = Date.now();
    page.set({ ...nothingOpen, running: run });
    return page.request('generate', { ids: ids.slice(-config.max_ids), runs: [{ run }], ...more }).then(() => page.state.running === run && page.onEnd());
  },

  // The server's answer; undefined after an error, which Chainlit shows.
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

  // Replace the last continuation by another; it stays available behind ‹ ›.
  again() {
    const document = page.document();
    const shown = pieces(document);
    const last = shown.pop();
    if (!shown.length) return page.generate(last, idsOf(document), { new_seed: true });
    const { first = [] } = last; // keep a chosen token
    const ids = [...shown.flatMap((piece) => piece.tokens), ...first].map((token) => token.id);
    return page.generate(shown.at(-1), ids, { new_seed: true }, first);
  },

  // Replace a token by another, and continue from there.
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
    const compared = config.compared.map((temperature) => ({ temperature, run: newRun(), tokens: [] }));
    page.set({ ...nothingOpen, compared, running: 'compare' });
    const runs = compared.map(({ run, temperature }) => ({ run, temperature }));
    return page.request('generate', { ids, runs }).then(() => page.state.running === 'compare' && page.onEnd());
  },

  begin: () => page.set({ ...nothingOpen, shown: null }),
  open: (id) => page.set({ ...nothingOpen, shown: id, unfolded: false }),

  // 4. Inspection

  // The server's answer about these ids, asked for once; undefined until it arrives. One question of
  // each kind is open at a time, with a pause before the next: an arrow key held down asks for many.
  look(what, ids) {
    const key = `${what} ${ids.join(' ')}`;
    const { known } = page.state;
    if (ids.length && !(key in known) && page.call && !asking.has(what)) page.ask(what, ids, key);
    return known[key];
  },
  async ask(what, ids, key) {
    asking.add(what);
    const answer = await page.request('look', { what, ids });
    if (answer !== undefined) page.set({ known: { ...Object.fromEntries(Object.entries(page.state.known).slice(-30)), [key]: answer } });
    await new Promise((resume) => setTimeout(resume, PAUSE));
    asking.delete(what);
    if (answer !== undefined) page.set({}); // the elements ask for what they show by now
  },

  // The ids that the model read before the token at this index, or with those up to `end`.
  read(index, end = index) {
    const tokens = tokensOf(page.document());
    const { seen = config.context_length } = tokens[index] ?? {};
    return tokens.slice(Math.max(0, index - seen, end - config.context_length), end).map((token) => token.id);
  },

  // The passages copied from the story, and their share; undefined until the answer arrives.
  copied() {
    const ids = idsOf(page.document());
    const skipped = Math.max(0, ids.length - config.max_ids);
    const answer = page.look('copied', ids.slice(skipped));
    return answer && { ...answer, runs: answer.runs.map((run) => ({ ...run, start: run.start + skipped })) };
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
  // A link that reproduces the first continuation, with its settings and seed.
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
addEventListener('hashchange', () => location.reload()); // a link, opened on the page itself
