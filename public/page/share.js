// Links to exactly one text, with its other versions.
import { isGenerated, newPiece, pieces, readDocument } from './document.js';
import { readSettings } from './settings.js';

const MAX_LINK = 20_000; // characters; some programs cut longer ones

// A piece in a link: its token ids, how many of them a person wrote, its continuations, and the one shown.
const pack = ({ tokens, children, at }) =>
  [tokens.map(({ id }) => id), tokens.filter((token) => !isGenerated(token)).length, children.map(pack), at];
const unpack = ([ids, typed, children, at], texts) => {
  const tokens = ids.map((_, i) => ({ ...texts.shift(), ...(i >= typed && { draft: false }) }));
  return newPiece(tokens, { first: tokens.slice(0, typed), children: children.map((child) => unpack(child, texts)), at });
};
const allIds = ([ids, , children]) => [...ids, ...children.flatMap(allIds)];

// `more`: settings, view, tab, chosen token and pause. A link that is too long holds only the shown text, and ends in `&shown`.
export function linkTo(address, document, more) {
  const encode = (root) => btoa(JSON.stringify({ ...more, root })).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
  const shown = pieces(document).reduceRight((after, piece) => [pack({ ...piece, children: [], at: 0 }).with(2, after)], []);
  const whole = encode(pack(document.root));
  const url = new URL(address);
  url.search = '';
  url.hash = `text=${whole.length > MAX_LINK ? `${encode(shown[0])}&shown` : whole}`;
  return url.href;
}

// What a link holds: { ids, build, settings, view, tab, chosen, pause }; undefined if there is no link, null for junk.
// `build` makes the document from the tokens of `ids`; undefined if they do not fit.
export function readLink(address) {
  const code = new URLSearchParams(new URL(address).hash.slice(1)).get('text');
  if (code === null) return undefined;
  try {
    const { root, settings, view, tab, ...places } = JSON.parse(atob(code.replaceAll('-', '+').replaceAll('_', '/')));
    const [chosen, pause] = [places.chosen, places.pause].map((index) => (Number.isInteger(index) ? index : null));
    const build = (id, texts) => readDocument({ id, changed: Date.now(), root: unpack(root, [...texts]) });
    return { ids: allIds(root), build, settings: readSettings(settings), view, tab, chosen, pause };
  } catch {
    return null;
  }
}
