// A document: a prompt and its continuations, as a tree of pieces. A piece holds tokens; its
// `children` are all continuations tried after it, and `at` is the one shown.

export const newPiece = (tokens = [], more = {}) => ({ tokens, children: [], at: 0, facts: [], ...more });
export const newDocument = (id, tokens, before = 0) => ({ id, before, changed: Date.now(), root: newPiece(tokens) });

// The pieces shown, from the prompt on.
export function pieces(document) {
  const shown = [document.root];
  while (shown.at(-1).children.length) shown.push(shown.at(-1).children[shown.at(-1).at]);
  return shown;
}

export const tokensOf = (document) => pieces(document).flatMap((piece) => piece.tokens);
// Only generated tokens have `draft`; a person typed or chose all others.
export const isGenerated = (token) => token.draft !== undefined;
// The prompt: the tokens before the first generated one.
export function promptOf(document) {
  const tokens = tokensOf(document);
  const end = tokens.findIndex(isGenerated);
  return end < 0 ? tokens : tokens.slice(0, end);
}
export const idsOf = (document) => tokensOf(document).map((token) => token.id);
export const textOf = (document, start = 0) => tokensOf(document).slice(start).map((token) => token.text).join('');

// Add a piece after `parent` and show it.
export const addPiece = (parent, piece) => void (parent.at = parent.children.push(piece) - 1);

// Cut the text before a token; the rest becomes one of the continuations there. Returns the piece
// that ends at the cut.
export function cutBefore(document, index) {
  let before;
  for (const piece of pieces(document)) {
    const { tokens, children, at, facts, run } = piece;
    if (index < tokens.length) {
      if (index === 0 && before) return before;
      const after = { ...newPiece(tokens.slice(index)), children, at, facts, run };
      return Object.assign(piece, { tokens: tokens.slice(0, index), children: [after], at: 0, facts: [], run: undefined });
    }
    index -= tokens.length;
    before = piece;
  }
  return before;
}

export const findPiece = (document, run, piece = document.root) =>
  piece.run === run ? piece : piece.children.map((child) => findPiece(document, run, child)).find(Boolean);

// A document from any input, such as the browser's storage; undefined if it is not valid.
export function readDocument(raw) {
  const isToken = (token) =>
    Number.isInteger(token?.id) && typeof token.text === 'string' && typeof token.label === 'string' &&
    [token.rank, token.logprob, token.prob, token.seen].every((value) => value === undefined || Number.isFinite(value));
  const readPiece = (raw, depth = 0) => {
    if (depth > 500 || !Array.isArray(raw?.tokens) || !raw.tokens.every(isToken)) return undefined;
    const children = Array.isArray(raw.children) ? raw.children.map((child) => readPiece(child, depth + 1)) : [];
    if (children.includes(undefined)) return undefined;
    const facts = Array.isArray(raw.facts) ? raw.facts.filter((fact) => typeof fact === 'string') : [];
    const at = Number.isInteger(raw.at) && raw.at >= 0 && raw.at < children.length ? raw.at : 0;
    const first = Array.isArray(raw.first) ? raw.first.filter(isToken) : [];
    return { ...newPiece(raw.tokens), children, at, facts, first };
  };
  const root = readPiece(raw?.root);
  if (!root || typeof raw.id !== 'string' || !tokensOf({ root }).length) return undefined;
  const name = typeof raw.name === 'string' ? raw.name.slice(0, 100) : undefined;
  return { id: raw.id, name, before: Number(raw.before) || 0, changed: Number(raw.changed) || 0, root };
}
