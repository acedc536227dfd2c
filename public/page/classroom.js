// A class: the page of a teacher asks for the next word of its text, and the pages of learners guess it.
import { page } from './store.js';

const EVERY = 1500; // ms between two looks at the class

// Kept in the tab's storage: also after a reload, and after a login, which drops the address's query.
const invited = new URLSearchParams(location.search).get('class');
if (invited) sessionStorage.setItem('class', invited);
const name = sessionStorage.getItem('class-page') ?? crypto.getRandomValues(new Uint32Array(4)).join('-'); // secret
sessionStorage.setItem('class-page', name);

// Ask, guess, reveal, or just look. The answer, the class as this page may see it, becomes `page.state.classroom`:
// null if there is no such class, undefined without a class.
export async function takePart(act = {}) {
  const classroom = await page.request('class', { page: name, code: sessionStorage.getItem('class'), ...act });
  if (classroom === null && act.ids) return; // a newer question replaced this one
  if (classroom === null) sessionStorage.removeItem('class'); // the page without a code is the start page again
  if (classroom && act.ids) sessionStorage.setItem('class', classroom.code);
  if (classroom !== undefined && JSON.stringify(classroom) !== JSON.stringify(page.state.classroom)) page.set({ classroom });
}
export async function followClass() {
  if (sessionStorage.getItem('class') && !page.state.offline) await takePart();
  setTimeout(followClass, EVERY);
}
export const joinClass = (code) => (sessionStorage.setItem('class', code), location.assign(code ? `/?class=${encodeURIComponent(code)}` : '/'));
// This page answers a class, or its class is over.
export const isLearner = () => page.state.classroom !== undefined && !page.state.classroom?.teaching;
// This page asks its class for the word at this index of the text.
export function isAsked(index) {
  const { teaching, wrote, ids } = page.state.classroom ?? {};
  return teaching && page.document() && wrote === page.wordAt(index) && `${ids}` === `${page.read(index)}`;
}
export const classAddress = () => `${location.origin}/?class=${page.state.classroom.code}`;
