// The text: prompt and continuations as one, of tokens that can be clicked. It is a block, so that
// its text direction ends with it.
import { useEffect, useRef, useSyncExternalStore } from 'react';

const FOLDED = 120; // of a longer prompt, only so many tokens are shown at first
const HOVER = 90; // ms until the panel follows the pointer

// The less likely, the more colour; the lines are for readers who cannot see the colours.
const LEVELS = [
  { least: 0.5, name: '50% or more', className: '' },
  { least: 0.1, name: '10 to 50%', className: 'level-1' },
  { least: 0.01, name: '1 to 10%', className: 'level-2' },
  { least: 0, name: 'below 1%', className: 'level-3' }
];
const levelOf = (logprob) => LEVELS.find((level) => Math.exp(logprob) >= level.least);

const VIEWS = { plain: 'none', probs: 'how likely', copied: 'copied from the story', drafts: 'from drafts', attention: 'attention' };

// The class of a token in each view, or its shade from 0 to 1.
const MARKS = {
  plain: () => ({}),
  probs: (token) => ({ className: token.logprob === undefined ? '' : levelOf(token.logprob).className }),
  drafts: (token) => ({ className: token.draft ? 'from-draft' : '' }),
  copied: (token) => ({ className: token.copied ? 'from-story' : '' }),
  attention: (token) => ({ shade: token.share })
};

const isInvisible = (text) => /^[\p{Cf}\p{VS}]*$/u.test(text);
// Shown before a token, but no part of the text, so that it is not copied with it.
const markerOf = (text) => (isInvisible(text) ? '▯' : '↵'.repeat(text.split('\n').length - 1));

// The tokens, with the server's answers for the view: scores of the prompt, copied passages, attention.
function described(shown, view, { head, running }) {
  const tokens = page.tokensOf(shown).map((token) => ({ ...token }));
  const told = { tokens };
  const looked = page.looked();
  if (view === 'probs') {
    const prompt = tokens.findIndex((token) => token.logprob !== undefined);
    const end = prompt < 0 ? tokens.length : prompt;
    const start = Math.max(0, end - page.config.context_length);
    const scores = end > 1 ? page.look('scores', tokens.slice(start, end).map((token) => token.id)) : undefined;
    scores?.tokens.forEach((score, i) => Object.assign(tokens[start + 1 + i], score));
    told.loss = scores?.loss;
  }
  if (view === 'copied' && running === null) {
    told.copied = page.copied();
    told.copied?.runs.forEach(({ start, length }) => tokens.slice(start, start + length).forEach((token) => (token.copied = true)));
  }
  if (view === 'attention' && head && looked !== null && looked < tokens.length) {
    const read = page.read(looked, looked + 1);
    const all = page.look('attention', read);
    const weights = all ? page.headWeights(all, head) : [];
    const most = Math.max(0.001, ...weights);
    weights.forEach((weight, i) => Object.assign(tokens[looked + 1 - read.length + i], { share: weight / most, attention: weight }));
  }
  return told;
}

function Legend({ view, views, told: { loss, copied, tokens }, unread, before }) {
  const lines = {
    plain: 'Bold: your own words.',
    copied: copied
      ? `${page.percent(copied.share)} of this text is copied from the story.${copied.runs.length ? ' Click a blue passage to see where.' : ''}`
      : 'Searching the story…',
    drafts: 'Green: words drafted from the story that the model accepted.',
    attention: 'The darker a word, the more the chosen word attends to it.'
  };
  return (
    <div className="legend">
      <label>
        Colours:{' '}
        <select id="view" value={view} onChange={(event) => page.set({ view: event.target.value })}>
          {views.map((name) => <option key={name} value={name}>{VIEWS[name]}</option>)}
        </select>
      </label>{' '}
      <span id="legend">
        {lines[view]}
        {view === 'probs' && (
          <>
            How likely the model found each token:{' '}
            {LEVELS.map(({ name, className }) => <span key={name} className={`${className} level`}>{name}</span>)}
            {loss != null && <span id="prompt-loss">The prompt’s mean loss: {loss.toFixed(2)} nats per token.</span>}
          </>
        )}
        {unread && ' Grey: too far back for the model to read.'}
        {tokens.some(({ text }) => isInvisible(text)) && ' ▯: a character that has no shape of its own.'}
        {before > 0 && ` The first ${before.toLocaleString('en')} tokens of the prompt are not kept.`}
      </span>
    </div>
  );
}

// ‹ 2/3 ›: the other continuations tried here.
const Versions = ({ piece }) =>
  piece.children.length > 1 && (
    <span className="versions">
      {' '}
      <button type="button" aria-label="Previous version" aria-disabled={page.state.running !== null} onClick={() => page.state.running ?? page.show(piece, -1)}>‹</button>
      {` ${piece.at + 1}/${piece.children.length} `}
      <button type="button" aria-label="Next version" aria-disabled={page.state.running !== null} onClick={() => page.state.running ?? page.show(piece, 1)}>›</button>
    </span>
  );

function Token({ token, index, canFocus, isLooked, isUnread, hint, view }) {
  const { className = '', shade } = MARKS[view](token);
  const classes = ['token', page.isGenerated(token) || 'prompt', isUnread && 'unread', className, hint && 'hinted'];
  const prob = token.logprob === undefined ? '' : `, ${page.percent(Math.exp(token.logprob))}, rank ${token.rank}`;
  const attention = token.attention === undefined ? '' : `, attention ${page.percent(token.attention)}`;
  return (
    <>
      <span
        className={classes.filter((name) => typeof name === 'string' && name).join(' ')}
        data-index={index}
        data-marker={markerOf(token.text) || undefined}
        role="button"
        aria-label={`${token.label}${prob}${attention}`}
        aria-pressed={isLooked}
        tabIndex={canFocus ? 0 : -1}
        style={shade === undefined ? undefined : { background: `rgba(0, 114, 178, ${0.7 * Math.sqrt(shade)})` }}
      >
        {token.text}
      </span>
      {hint && <span className="hint" data-hint="‹ click this word: the model hesitated here" />}
    </>
  );
}

function Editor({ caret }) {
  const box = useRef(null);
  useEffect(() => {
    box.current.focus();
    box.current.setSelectionRange(caret, caret);
  }, []);
  const cancel = () => page.set({ editing: null });
  const onKeyDown = (event) => event.key === 'Escape' && (event.preventDefault(), cancel());
  const send = () => {
    const text = box.current.value.slice(0, box.current.selectionStart);
    if (text) page.rewrite(text);
  };
  return (
    <div id="editor" onKeyDown={onKeyDown}>
      <textarea id="edited" ref={box} aria-label="The text" defaultValue={page.text()} />
      <div className="row">
        <span className="legend">The text up to the cursor stays. The old version stays behind ‹ ›.</span>
        <span>
          <button type="button" id="continue-here" className="primary" onClick={send}>Continue from here</button>{' '}
          <button type="button" onClick={cancel}>Cancel</button>
        </span>
      </div>
    </div>
  );
}

// The index of the token that is nearest in the line above (step -1) or below (1), or undefined.
function besideLine(index, step) {
  const boxes = [...document.querySelectorAll('#text .token')].map((token) => ({ index: Number(token.dataset.index), box: token.getClientRects()[0] }));
  const own = boxes.find((other) => other.index === index).box;
  const beyond = boxes.filter(({ box }) => box && step * (box.top - own.top) > own.height / 2);
  const line = step * Math.min(...beyond.map(({ box }) => step * box.top));
  const near = beyond.filter(({ box }) => Math.abs(box.top - line) < own.height / 2);
  return near.sort((one, other) => Math.abs(one.box.left - own.left) - Math.abs(other.box.left - own.left))[0]?.index;
}

let hovering; // timer

function Text() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  const group = useRef(null);
  const shown = page.document();
  const { chosen, running } = state;
  useEffect(() => {
    if (chosen !== null) group.current?.querySelector(`[data-index="${chosen}"]`)?.scrollIntoView({ block: 'nearest' });
  }, [chosen, state.sheet]);
  // Keep the end of a growing text in view, unless the reader has scrolled away from it.
  const end = useRef(null);
  const length = shown ? page.tokensOf(shown).length : 0;
  useEffect(() => {
    if (!running || running === 'compare' || !end.current) return;
    const bottom = end.current.getBoundingClientRect().bottom;
    const above = document.getElementById('settings-line')?.getBoundingClientRect().top ?? innerHeight;
    if (bottom > above - 8 && bottom < above + 160) end.current.scrollIntoView({ block: 'center' });
  }, [length]);
  if (!shown) return null;

  const views = Object.keys(VIEWS).filter((name) => name !== 'drafts' || page.tokensOf(shown).some((token) => token.draft));
  const view = views.includes(state.view) ? state.view : 'plain';
  const told = described(shown, view, state);
  const pieces = page.pieces(shown);
  const hidden = state.unfolded ? 0 : Math.max(0, page.promptOf(shown).length - FOLDED);
  const unread = length - page.config.context_length;
  const looked = page.looked();
  const hint = state.hinted || running ? null : page.hint();
  const indexOf = (event) => Number(event.target.closest('.token')?.dataset.index ?? NaN);
  const onClick = (event) => Number.isNaN(indexOf(event)) || page.pick(indexOf(event));
  const onPointerOver = (event) => {
    clearTimeout(hovering);
    if (event.pointerType === 'mouse' && !Number.isNaN(indexOf(event))) hovering = setTimeout(page.hover, HOVER, indexOf(event));
  };
  const onPointerLeave = () => {
    clearTimeout(hovering);
    if (chosen !== null) page.hover(null);
  };
  const onKeyDown = (event) => {
    const index = indexOf(event);
    if (Number.isNaN(index) || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: hidden, End: length - 1, Enter: index, ' ': index };
    const to = by[event.key] ?? (/^Arrow/.test(event.key) ? besideLine(index, event.key === 'ArrowDown' ? 1 : -1) ?? index : undefined);
    if (to === undefined) return;
    event.preventDefault();
    const target = Math.min(Math.max(to, hidden), length - 1);
    page.pick(target);
    group.current.querySelector(`[data-index="${target}"]`)?.focus();
  };
  const facts = pieces.flatMap((piece) => piece.facts.length ? [piece.facts] : []);
  let index = -1;
  return (
    <article className="document" aria-label="Text">
      <Legend view={view} views={views} told={told} unread={unread > 0} before={shown.before} />
      {hidden > 0 && <button type="button" id="unfold" onClick={() => page.set({ unfolded: true })}>… {hidden} earlier tokens of the prompt</button>}
      {state.editing !== null ? (
        <Editor caret={state.editing} />
      ) : (
        <div ref={group} id="text" role="group" aria-label="The text" onClick={onClick} onKeyDown={onKeyDown} onPointerOver={onPointerOver} onPointerLeave={onPointerLeave}>
          {pieces.map((piece, number) => (
            <span key={number}>
              {piece.tokens.map((token) => {
                index += 1;
                if (index < hidden) return null;
                return (
                  <Token
                    key={index}
                    token={told.tokens[index]}
                    index={index}
                    canFocus={index === (chosen ?? hidden)}
                    isLooked={index === looked}
                    isUnread={index < unread}
                    hint={index === hint}
                    view={view}
                  />
                );
              })}
              <Versions piece={piece} />
            </span>
          ))}
          <span ref={end} className={running && running !== 'compare' ? 'caret' : ''} />
        </div>
      )}
      <p className="facts" aria-live="polite">{facts.length > 0 && facts.at(-1).join(' · ')}</p>
    </article>
  );
}

export default page.component('Text', Text);
