// Links to exactly one text, with its other versions, and downloads.
import { isGenerated, newDocument, newPiece, pieces } from './document.js';
import { readSettings } from './settings.js';

const MAX_LINK = 20_000; // characters; some programs cut longer ones
const MAX_DEPTH = 500;

// A piece as numbers: its token ids, how many of them a person wrote, its continuations, and the one shown.
const pack = ({ tokens, children, at }) => {
  const generated = tokens.findIndex(isGenerated);
  return [tokens.map(({ id }) => id), generated < 0 ? tokens.length : generated, children.map(pack), at];
};

function unpack([ids, typed, children, at], texts) {
  const tokens = ids.map((id, i) => ({ ...texts.shift(), ...(i >= typed && { draft: false }) }));
  return newPiece(tokens, { first: tokens.slice(0, typed), children: children.map((child) => unpack(child, texts)), at });
}

function isPacked(raw, depth = 0) {
  if (!Array.isArray(raw) || depth > MAX_DEPTH) return false;
  const [ids, typed, children, at] = raw;
  return Array.isArray(ids) && ids.every(Number.isInteger) && Number.isInteger(typed) && Array.isArray(children) &&
    children.every((child) => isPacked(child, depth + 1)) && (children.length ? at in children : at === 0);
}

const allIds = ([ids, , children]) => [...ids, ...children.flatMap(allIds)];

// `more`: settings, view, tab and chosen token. A link that is too long leaves out the other versions.
export function linkTo(address, document, more) {
  const encode = (root) => {
    const bytes = new TextEncoder().encode(JSON.stringify({ ...more, root }));
    return btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
  };
  const shown = pieces(document).reduceRight((children, piece) => [pack({ ...piece, children: [], at: 0 }).with(2, children)], []);
  const url = new URL(address);
  const whole = encode(pack(document.root));
  url.hash = `text=${whole.length > MAX_LINK ? encode(shown[0]) : whole}`;
  return url.href;
}

// What a link holds: { ids, build, settings, view, tab, chosen }; undefined if there is no link, null for junk.
// `build` makes the document from the tokens of `ids`.
export function readLink(address) {
  const code = new URLSearchParams(new URL(address).hash.slice(1)).get('text');
  if (code === null) return undefined;
  try {
    const { root, settings, view, tab, chosen } = JSON.parse(atob(code.replaceAll('-', '+').replaceAll('_', '/')));
    if (!isPacked(root)) return null;
    const build = (id, texts) => Object.assign(newDocument(id, []), { root: unpack(root, [...texts]) });
    return { ids: allIds(root), build, settings: readSettings(settings), view: String(view), tab: String(tab), chosen: Number.isInteger(chosen) ? chosen : null };
  } catch {
    return null;
  }
}

export function saveAs(name, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'text/plain;charset=utf-8' }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
