// The page's modules (public/page/) without a browser. tests/test_page.py runs this file.
import assert from 'node:assert/strict';
import test from 'node:test';

import { addPiece, cutBefore, findPiece, idsOf, isGenerated, newDocument, newPiece, pieces, readDocument, textOf } from '../public/page/document.js';
import { percent } from '../public/page/sampling.js';
import { clamp, config, defaults, readSettings, seedIsUsable, summary } from '../public/page/settings.js';
import { linkTo, readLink } from '../public/page/share.js';

const limits = { temperature: [0, 4, 1], top_k: [0, 90, 40], top_p: [0.1, 1, 1], max_new_tokens: [1, 300, 80] };
for (const [name, [min, max, usual]] of Object.entries(limits)) limits[name] = { min, max, default: usual };
Object.assign(config, { limits, seed_digits: 6 });
const DEFAULTS = { temperature: 1, top_k: 40, top_p: 1, max_new_tokens: 80, seed: '' };

const tokens = (...ids) => ids.map((id) => ({ id, text: `<${id}>`, label: String(id) }));
const JUNK = [{ id: 'x', root: { tokens: [{ ...tokens(1)[0], logprob: 'x' }] } }, undefined, null, 5, 'x', [], {}, { root: 5 }, { id: 'x', root: { tokens: 'x' } }, { id: 'x', root: { tokens: [{ id: 1 }] } },
  { id: 'x', root: { tokens: tokens(1), children: [5] } }, { id: 5, root: { tokens: tokens(1) } }, { id: 'x', root: { tokens: [] } }];

test('a text is its pieces, and another token begins another continuation', () => {
  const text = newDocument('a', tokens(1, 2, 3));
  addPiece(text.root, newPiece(tokens(4, 5, 6), { run: 'r' }));
  addPiece(pieces(text).at(-1), newPiece(tokens(7)));
  assert.deepEqual(idsOf(text), [1, 2, 3, 4, 5, 6, 7]);
  addPiece(cutBefore(text, 4), newPiece(tokens(9)));
  assert.deepEqual(idsOf(text), [1, 2, 3, 4, 9]);
  const cut = pieces(text)[1];
  assert.equal(cut.children.length, 2);
  cut.at = 0;
  assert.deepEqual(idsOf(text), [1, 2, 3, 4, 5, 6, 7]);
  assert.deepEqual(findPiece(text, 'r').tokens, tokens(5, 6));
  addPiece(cutBefore(text, 3), newPiece(tokens(8))); // where a piece begins, nothing is cut
  assert.equal(text.root.children.length, 2);
  assert.deepEqual(idsOf(text), [1, 2, 3, 8]);
  addPiece(cutBefore(text, 1), newPiece(tokens(0))); // within the prompt
  assert.deepEqual(idsOf(text), [1, 0]);
});

test('a document comes back from the storage; junk does not', () => {
  const text = newDocument('a', tokens(1, 2), 3);
  addPiece(text.root, newPiece(tokens(4), { facts: ['1 token'] }));
  addPiece(text.root, newPiece(tokens(5), { first: tokens(5) }));
  const back = readDocument(JSON.parse(JSON.stringify(text)));
  assert.equal(textOf(back), textOf(text));
  assert.deepEqual([back.id, back.before, back.changed, back.root.children.length], ['a', 3, text.changed, 2]);
  assert.deepEqual(back.root.children[1].first, tokens(5));
  for (const junk of JUNK) assert.equal(readDocument(junk), undefined);
  let deep = { tokens: tokens(1) };
  for (let i = 0; i < 600; i++) deep = { tokens: tokens(1), children: [deep] };
  assert.equal(readDocument({ id: 'x', root: deep }), undefined);
});

test('settings of any kind are clamped to the limits', () => {
  assert.deepEqual(defaults(), DEFAULTS);
  for (const junk of [undefined, null, 5, 'x', [], {}, { temperature: 'hot', top_k: {}, top_p: null, seed: '-1' }])
    assert.deepEqual(readSettings(junk), DEFAULTS);
  const read = readSettings({ temperature: 99, top_k: -5, top_p: 0, max_new_tokens: '1e9', seed: ' 12 ' });
  assert.deepEqual(read, { temperature: 4, top_k: 0, top_p: 0.1, max_new_tokens: 300, seed: '12' });
  assert.deepEqual([clamp('temperature', 0.30000001), clamp('top_k', ''), clamp('top_k', 7.4), clamp('temperature', '0,7')], [0.3, 40, 7, 0.7]);
  assert.deepEqual(['', '123456', 'x', '1234567'].map(seedIsUsable), [true, true, false, false]);
});

test('the line of settings says what has an effect', () => {
  const sampled = { ...DEFAULTS, temperature: 0.8, top_p: 0.5, seed: '5' };
  assert.equal(summary(sampled), 'Settings: temperature 0.8, top-k 40, top-p 0.5, 80 tokens, seed 5');
  assert.equal(summary({ ...sampled, temperature: 0, max_new_tokens: 1 }), 'Settings: temperature 0, 1 token');
});

test('a percentage is as exact as it need be', () => {
  assert.deepEqual([1, 0.999, 0.5, 0.031, 0.0001, 0].map(percent), ['100%', '>99%', '50%', '3.1%', '<0.1%', '0%']);
});

test('a link holds a text, its versions and what is shown', () => {
  const text = newDocument('a', tokens(1, 2));
  addPiece(text.root, newPiece(tokens(3).map((token) => ({ ...token, draft: true }))));
  addPiece(text.root, newPiece([...tokens(4), ...tokens(5).map((token) => ({ ...token, draft: false }))]));
  const more = { settings: { ...DEFAULTS, temperature: 0.4, seed: '7' }, view: 'probs', tab: 'guess', chosen: 2, pause: 3 };
  const { ids, build, ...read } = readLink(linkTo('http://127.0.0.1:8000/?a=b#old', text, more));
  assert.deepEqual(read, more);
  assert.deepEqual(ids, [1, 2, 3, 4, 5]);
  const back = build('b', tokens(...ids));
  assert.deepEqual([textOf(back), back.root.children.length, idsOf(back)], [textOf(text), 2, [1, 2, 4, 5]]);
  assert.deepEqual(pieces(back)[1].tokens.map(isGenerated), [false, true]);
  for (let i = 0; i < 30; i++) addPiece(text.root, newPiece(tokens(...Array(300).keys())));
  const long = linkTo('http://127.0.0.1:8000/', text, more); // only what is shown
  assert.ok(long.length < 5000 && long.endsWith('&shown'));
  assert.deepEqual(idsOf(readLink(long).build('c', tokens(...readLink(long).ids))), idsOf(text));
});

test('a link without a text, and junk', () => {
  assert.equal(readLink('http://127.0.0.1:8000/'), undefined);
  const junk = ['', 'x', 5, null, [], {}, [[1.5], 0, [], 0], [[1], 0, [5], 0], [['1'], 1, [], 0]];
  for (const root of junk) assert.ok(!readLink(`http://x/#text=${btoa(JSON.stringify({ root }))}`)?.build('a', []));
  assert.equal(readLink('http://x/#text=%%%'), null);
});
