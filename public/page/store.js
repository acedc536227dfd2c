// The page's state, and every action on it. The elements show `page.state` and call these actions;
// nothing else changes the state.
import { addPiece, cutBefore, findPiece, idsOf, isGenerated, newDocument, newPiece, pieces, promptOf, readDocument, textOf, tokensOf } from './document.js';
import { linkTo, readLink } from './share.js';
import { stores } from './storage.js';
import { config, readSettings } from './settings.js';

const STORE = 'story-page';
const MAX_DOCUMENTS = 20;
const MAX_DELETED = 100; // ids that other tabs must not store again
const MAX_STORED = 2_000_000; // characters; browsers allow five million
const ABOUT_A_TOKEN = ['word', 'attention', 'layers', 'story']; // tabs
const MAX_PAST = 30; // states of the texts for Undo
const PAUSE = 150; // ms before the next question to the server

const isWordStart = ({ text }) => /^ \p{L}/u.test(text);
const newRun = () => crypto.randomUUID?.() ?? `run ${Math.random()}`; // plain HTTP has no crypto
const nothingOpen = { chosen: null, hovered: null, editing: null, sheet: false, asked: null, answer: null, interrupted: null };

function load() {
  let raw;
  try {
    raw = JSON.parse(localStorage.getItem(STORE));
  } catch {} // junk
  const list = Array.isArray(raw?.documents) ? raw.documents : [];
  const documents = list.slice(0, MAX_DOCUMENTS).map(readDocument).filter(Boolean);
  const shown = documents.some((document) => document.id === raw.shown) ? raw.shown : null;
  return { documents, shown, settings: readSettings(raw?.settings), hinted: raw?.hinted === true, deleted: { ...raw?.deleted } };
}

// The latest version of each text, of this and other tabs, and what has been deleted.
function merged() {
  const stored = load();
  const deleted = Object.fromEntries(Object.entries({ ...stored.deleted, ...page.state.deleted }).slice(-MAX_DELETED));
  const latest = new Map();
  for (const document of [...stored.documents, ...page.state.documents])
    if (document.changed >= Math.max(latest.get(document.id)?.changed ?? 0, deleted[document.id] ?? 0, deleted.all ?? 0)) latest.set(document.id, document);
  return { documents: [...latest.values()].sort((one, other) => other.changed - one.changed), deleted };
}

function save() {
  const { shown, settings, hinted } = page.state;
  const { documents: all, deleted } = merged();
  const documents = all.filter((document) => JSON.stringify(document).length < 0.9 * MAX_STORED); // a longer one would displace all others
  for (let count = Math.min(documents.length, MAX_DOCUMENTS); count >= 0; count--) {
    const stored = JSON.stringify({ documents: documents.slice(0, count), shown, settings, hinted, deleted });
    try {
      if (stored.length < MAX_STORED) return localStorage.setItem(STORE, stored);
    } catch {} // full: store fewer
  }
}

const listeners = new Set();
const asking = new Set(); // kinds of open questions
const past = []; // for Undo: { document, root }
let saving; // timer
let lesson; // the card of the start page that began the text

export const page = {
  stores,
  state: {
    documents: [],
    shown: null,
    settings: null, // until `start`
    deleted: {}, // when a text was deleted, by id, and when all were
    view: 'plain', // the colours of the text: plain, probs, copied, drafts, attention
    tab: 'word', // of the panel: see Panel.jsx
    chosen: null, // token of the text, by its index
    hovered: null, // token under the pointer
    sheet: false, // on a narrow screen, the panel is open
    editing: null, // where the cursor begins, while the text is edited
    compared: null, // the texts of Compare
    asked: null, // of Guess: the ids of the text up to the hidden word's first token
    answer: null, // of Guess, after Reveal: { guess, prob }
    surprises: [], // of the guesses so far, in bits
    hinted: false, // a person who has once opened a token needs no hint
    running: null, // the generation in progress
    offline: false,
    interrupted: null, // the generation to resume after a lost connection
    people: 0, // who are generating texts now
    head: null, // of the attention view: its number, or 'average'; null: not chosen yet
    problem: null, // what went wrong, in words
    classroom: undefined, // see classroom.js
    story: undefined, // until the tab asks for it
    known: {} // the server's answers about the text, by question
  },
  subscribe: (listener) => (listeners.add(listener), () => listeners.delete(listener)),
  get: () => page.state,
  set: (changes) => (page.update(changes), (saving ??= setTimeout(() => ((saving = null), save()), 500))),
  update(changes) {
    page.state = { ...page.state, ...changes };
    for (const listener of listeners) listener();
  },
  // The first component of each name stays, so its state survives when Chainlit loads the element again.
  components: {},
  component(name, component) {
    setTimeout(page.set, 0, {}); // the panel may wait for it
    return (page.components[name] ??= component);
  },
  part: (name, component) => (page.component(name, component), () => null), // another component shows it
  touch: (document, changes) => (Object.assign(document, { changed: Date.now() }), page.set(changes)), // of several tabs, the last change wins
  document: () => page.state.documents.find((document) => document.id === page.state.shown),
  change: (settings) => page.set({ settings: { ...page.state.settings, ...settings } }),

  // 1. From the server

  // Called by the element Connection, which also sets `call` and `send`: Chainlit's callAction and sendUserMessage.
  connect(socket) {
    page.socket = socket;
    if (!page.state.settings) page.start();
    const events = Object.entries({ connect: page.onConnect, disconnect: page.onDisconnect, ready: page.onReady, problem: page.onProblem, prompt: page.onPrompt, tokens: page.onTokens, finished: page.onFinished });
    events.forEach((event) => socket.on(...event));
    return () => events.forEach((event) => socket.off(...event));
  },
  // Show the stored texts and the link's text. Reading them needs app.py's limits.
  async start() {
    page.set({ ...load(), problem: config.problem });
    await page.followClass();
    if (page.state.classroom?.teaching) page.set({ tab: 'guess' });
    if (page.isAsked(page.state.classroom?.pause)) page.pauseAt(page.state.classroom.pause);
    if (page.isLearner()) page.set({ shown: null });
    const link = readLink(location.href);
    if (link === undefined) return;
    page.set({ shown: null });
    history.replaceState(null, '', location.pathname + location.search);
    const texts = link && (await page.request('tokens', { ids: link.ids }));
    const document = texts && link.build(newRun(), texts);
    if (!document) return page.onProblem('This link is damaged, too long, or belongs to another model.');
    page.set({ documents: [document, ...page.state.documents].slice(0, MAX_DOCUMENTS), shown: document.id, settings: link.settings });
    page.openTab(link.tab);
    page.set({ view: link.view, chosen: link.chosen, hinted: true });
    page.pauseAt(link.pause);
  },
  onConnect: () => page.set({ offline: false, running: null }),
  onDisconnect() {
    const { running, interrupted } = page.state;
    page.set({ offline: true, running: null, interrupted: ['compare', page.stopping].includes(running) ? null : running ?? interrupted });
  },
  // The server is ready again: continue where the connection was lost.
  onReady() {
    const { interrupted } = page.state;
    page.set({ interrupted: null });
    const last = page.document() && pieces(page.document()).at(-1);
    if (!interrupted || last?.run !== interrupted) return;
    const missing = last.settings.max_new_tokens - last.tokens.filter(isGenerated).length;
    if (missing > 0) page.generate(last, idsOf(page.document()), [], { ...last.settings, max_new_tokens: missing });
  },
  onProblem: (problem) => page.set({ problem, running: null }),
  // The server has read a prompt, which begins a new document.
  onPrompt({ id, tokens, before }) {
    if (page.state.documents.some((document) => document.id === id)) return;
    const document = newDocument(id, tokens, before);
    page.set({ ...nothingOpen, documents: [document, ...page.state.documents].slice(0, MAX_DOCUMENTS), shown: id });
    page.generate(document.root, idsOf(document));
  },
  onTokens({ run, tokens, people = 0 }) {
    const [compared, piece] = [page.state.compared?.find((text) => text.run === run), page.find(run)];
    if (piece?.children.length) return; // after a lost connection, the text continues in another piece
    (compared ?? piece)?.tokens.push(...tokens);
    page.set({ people, ...(!compared && { running: run }) });
  },
  // The whole continuation: tokens sent during a disconnect are lost.
  onFinished({ run, tokens, facts }) {
    const compared = page.state.compared?.find((text) => text.run === run);
    if (compared) Object.assign(compared, { tokens, facts, finished: true });
    const { running, compared: all } = page.state;
    if (running === run || (running === 'compare' && all?.every((text) => text.finished))) page.set({ running: null });
    const piece = page.find(run);
    if (!piece) return;
    // A piece with children was cut by choosing another token: leave it as it is.
    if (!piece.children.length) piece.tokens = [...(piece.first ?? []), ...tokens];
    piece.facts = facts;
    page.touch(page.state.documents.find((document) => findPiece(document, run)));
    if (lesson === 'change') page.pick(page.hint());
    else if (!page.state.hinted && page.state.hovered === null) page.hover(page.hint());
    lesson = undefined;
  },
  find: (run) => page.state.documents.map((document) => findPiece(document, run)).find(Boolean),

  // 2. Generation

  // Continue `ids` in a new piece after `parent`. It begins with the tokens `first`, the last of `ids`.
  generate(parent, ids, first = [], changed = {}) {
    const [run, settings] = [newRun(), { ...page.state.settings, ...changed }];
    addPiece(parent, newPiece([...first], { run, first, settings }));
    page.touch(page.document(), { running: run, editing: null, hovered: null, problem: null });
    return page.requestRuns(ids, [{ run }], settings);
  },
  requestRuns(ids, runs, settings) {
    const payload = { ids: ids.slice(-config.max_ids), settings, runs };
    const request = (page.lastRequest = {});
    // If it failed because the connection is lost, `onDisconnect` must first see what was running.
    const end = () => setTimeout(() => page.lastRequest === request && page.set({ running: null }), 1000);
    return page.call({ name: 'generate', payload }).then(({ response }) => response || end(), end);
  },
  stop: () => ((page.stopping = page.state.running), page.state.offline ? page.set({ interrupted: null }) : page.request('stop', {})),
  // The server's answer; undefined after an error, which Chainlit shows.
  request: (name, payload) => page.call({ name, payload }).then(({ response }) => response ?? null, () => undefined),
  // Change the text in a way that Undo can revert.
  revise(change) {
    const document = page.document();
    if (page.state.running !== null || page.state.offline) return undefined;
    past.push({ document, root: structuredClone(document.root) });
    past.splice(0, past.length - MAX_PAST);
    return change(document, idsOf(document));
  },
  undoable: () => past.findLastIndex(({ document }) => document === page.document()),
  undo() {
    if (page.undoable() < 0 || page.state.running !== null) return;
    const [{ root }] = past.splice(page.undoable(), 1);
    page.touch(Object.assign(page.document(), { root }), { editing: null, hovered: null, interrupted: null });
  },
  goOn: () => page.revise((document, ids) => page.generate(pieces(document).at(-1), ids)),
  // Replace the last continuation by another; it stays available behind ‹ ›.
  again: () => page.revise((document, ids) => {
    const shown = pieces(document);
    const last = shown.pop();
    if (!shown.length) return page.generate(last, ids, [], { seed: '' });
    const { first = [], tokens } = last; // keep a chosen token
    const kept = ids.slice(0, ids.length - tokens.length + first.length);
    return page.generate(shown.at(-1), kept, first, { seed: '' });
  }),
  // Replace a token by another, and continue from there. At the end of the text, add it.
  choose: (index, token) => page.revise((document, ids) =>
    page.generate(cutBefore(document, index), [...ids.slice(0, index), token.id], [token])),
  // Begin to edit after this token, or at the end.
  edit(index) {
    const tokens = tokensOf(page.document()).slice(0, index === null ? undefined : index + 1);
    page.set({ editing: tokens.reduce((sum, { text }) => sum + text.length, 0), sheet: false });
  },
  // Change the text to what the editor holds before its cursor, and continue. Tokens at its beginning stay.
  async rewrite({ value, selectionStart }) {
    const text = value.slice(0, selectionStart);
    const old = tokensOf(page.document());
    let [kept, length] = [0, 0];
    while (kept < old.length && text.startsWith(old[kept].text, length)) length += old[kept++].text.length;
    // The tokens of a word depend on the whole word, which begins with a space.
    while (kept > 0 && length < text.length && !/^\s/.test(text.slice(length))) length -= old[--kept].text.length;
    if (!text) return page.onProblem('Type something before the cursor first.');
    const typed = length < text.length ? await page.request('tokens', { text: text.slice(length) }) : [];
    if (typed) await page.revise((document, ids) =>
      page.generate(cutBefore(document, kept), [...ids.slice(0, kept), ...typed.map(({ id }) => id)], typed));
  },
  show(piece, step) {
    piece.at = (piece.at + step + piece.children.length) % piece.children.length;
    page.touch(page.document(), nothingOpen);
  },
  // Continue the prompt at these temperatures.
  compare(temperatures) {
    const ids = promptOf(page.document()).map((token) => token.id);
    const compared = temperatures.map((temperature) => ({ temperature, ids, run: newRun(), tokens: [] }));
    page.set({ compared, running: 'compare', problem: null });
    return page.requestRuns(ids, compared.map(({ temperature, run }) => ({ temperature, run })), page.state.settings);
  },
  keep: ({ tokens, facts }) => page.revise((document) => {
    addPiece(cutBefore(document, promptOf(document).length), newPiece(tokens, { facts }));
    page.touch(document);
  }),
  // Begin with a card of the start page.
  startWith(card) {
    lesson = card;
    page.set({ tab: card === 'guess' ? 'guess' : 'word' });
    page.send(config.starters[0]);
  },
  rename: (document, name) => page.touch(Object.assign(document, { name: name.slice(0, 100) })),
  remove(id) { // or 'all'
    const documents = page.state.documents.filter((document) => id !== 'all' && id !== document.id);
    page.set({ documents, deleted: { ...page.state.deleted, [id]: Date.now() } });
  },
  begin: () => (page.set({ ...nothingOpen, shown: null }), setTimeout(() => document.getElementById('chat-input')?.focus())),
  open: (id) => page.set({ ...nothingOpen, shown: id }),

  // 3. Inspection

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
  loadStory: () => page.state.story || page.request('story', {}).then((story) => page.set({ story })),
  // The token that the panel is about: the one under the pointer or the chosen one.
  looked: () => (ABOUT_A_TOKEN.includes(page.state.tab) ? page.state.hovered ?? page.state.chosen : null),
  pick: (chosen, { tab } = page.state) =>
    page.set({ chosen, hovered: null, sheet: true, hinted: true, tab: ABOUT_A_TOKEN.includes(tab) ? tab : 'word' }),
  hover: (hovered) => page.set({ hovered }),
  // Close the editor or the sheet.
  close() {
    const opener = page.state.editing !== null ? '#edit' : page.state.sheet && (page.state.chosen === null ? '#look-inside' : `#text [data-index="${page.state.chosen}"]`);
    if (!opener) return;
    page.set({ editing: null, sheet: false, problem: null });
    document.querySelector(opener)?.focus();
  },
  openTab(tab) {
    const views = { attention: 'attention', story: 'copied' };
    const left = views[page.state.tab] === page.state.view ? 'plain' : page.state.view;
    page.set({ tab, sheet: true, view: views[tab] ?? left });
  },
  // Guess: stop before the first word from this token on that the model wrote.
  pauseAfter: (from) => page.pauseAt(tokensOf(page.document()).findIndex((token, index) => index >= from && isGenerated(token) && isWordStart(token))),
  pauseAt: (index) => page.set({ asked: index > 0 && page.wordAt(index) ? idsOf(page.document()).slice(0, index + 1) : null, answer: null, sheet: true }),
  // The hidden word's first token; null without one, or if the text has changed there or before.
  pause() {
    const { asked } = page.state;
    const ids = asked && idsOf(page.document());
    return asked?.every((id, i) => id === ids[i]) ? asked.length - 1 : null;
  },
  // The whole word that begins at this token.
  wordAt: (index) => textOf(page.document(), index).match(/^\s*[\p{L}\p{M}’'-]*/u)[0].trim(),
  // The weights of one head (of all layers' heads in turn), or their average, from 0 to 1.
  headWeights(all, head) {
    const rows = head === 'average' && all ? all.flat() : [all?.flat()[head] ?? []];
    return rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length / 1000);
  },
  // A generated word where the model hesitated, early in the last continuation; null without one.
  hint() {
    const tokens = page.document() ? pieces(page.document()).at(-1).tokens : [];
    const isWord = ({ text }, index) => /^ \p{L}{2}/u.test(text) && !/^\p{L}/u.test(tokens[index + 1]?.text ?? '');
    const words = tokens.filter((token, index) => token.logprob !== undefined && isWord(token, index));
    const far = ({ logprob }) => Math.abs(Math.exp(logprob) - 0.3);
    return words.length ? tokensOf(page.document()).indexOf(words.slice(0, 40).sort((one, other) => far(one) - far(other))[0]) : null;
  },

  // 4. Sharing

  text: () => textOf(page.document()),
  nameOf: (document) => document.name ?? textOf(document).trim().slice(0, 60),
  link() {
    const { settings, view, tab, chosen } = page.state;
    return linkTo(location.href, page.document(), { settings, view, tab, chosen, pause: page.pause() });
  }
};

addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !event.defaultPrevented && !event.isComposing && !document.querySelector(':popover-open')) page.close();
  if (event.key !== 'z' || !(event.ctrlKey || event.metaKey) || event.target.closest('input, textarea') || !page.document() || page.state.editing !== null) return;
  event.preventDefault();
  page.undo();
});
addEventListener('pagehide', () => saving && save());
addEventListener('storage', () => { // another tab has written; not stored again, which could replace its next text
  const { running, settings, editing, shown } = page.state;
  const documents = running === null && settings && editing === null ? merged().documents : [];
  if (documents.length && (shown === null || documents.some(({ id }) => id === shown))) page.update({ documents });
});
addEventListener('hashchange', () => location.reload()); // a link, opened on the page itself
