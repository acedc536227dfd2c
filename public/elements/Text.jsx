// The text: prompt and continuations as one, of tokens that can be clicked. It is a block, so that
// its text direction ends with it.
import { useEffect, useRef, useSyncExternalStore } from 'react';

const HOVER = 90; // ms until the panel follows the pointer
const VIEWS = { plain: 'none', probs: 'how likely', copied: 'copied from the story', drafts: 'from drafts', attention: 'attention' };

// The less likely, the more colour; the lines are for readers who cannot see the colours.
const LEVELS = [
  { least: 0.5, name: '50% or more', className: '' },
  { least: 0.1, name: '10 to 50%', className: 'level-1' },
  { least: 0.01, name: '1 to 10%', className: 'level-2' },
  { least: 0, name: 'below 1%', className: 'level-3' }
];
const levelOf = ({ logprob }) => LEVELS.find(({ least }) => Math.exp(logprob) >= least)?.className;

const isInvisible = (text) => /^[\p{Cf}\p{VS}]*$/u.test(text);
// Shown before a token, but no part of the text.
const markerOf = (text) => (isInvisible(text) ? '▯' : '↵'.repeat(text.split('\n').length - 1));

// The tokens with their colours, and what the legend says about them. It asks the server for scores of
// the prompt, copied passages or attention.
function coloured(shown, view, { head, running }) {
  const tokens = page.tokensOf(shown).map((token) => ({ ...token }));
  const looked = page.looked();
  if (view === 'probs') {
    const scored = tokens.findIndex((token) => token.logprob !== undefined);
    const end = scored < 0 ? tokens.length : scored;
    const start = Math.max(0, end - page.config.context_length);
    const scores = end > 1 ? page.look('scores', tokens.slice(start, end).map((token) => token.id)) : undefined;
    scores?.tokens.forEach((score, i) => Object.assign(tokens[start + 1 + i], score));
    tokens.forEach((token) => (token.className = levelOf(token)));
    return { tokens, loss: scores?.loss };
  }
  if (view === 'copied') {
    const copied = running === null ? page.copied() : undefined;
    copied?.runs.forEach(({ start, length }) => tokens.slice(start, start + length).forEach((token) => (token.className = 'from-story')));
    const line = copied && `${page.percent(copied.share)} of this text is copied from the story.${copied.runs.length ? ' Click or tap a blue passage to see where.' : ''}`;
    return { tokens, line: line ?? 'Searching the story…' };
  }
  if (view === 'drafts') {
    tokens.forEach((token) => (token.className = token.draft && 'from-draft'));
    return { tokens, line: 'Green: drafts copied from the story that the model accepted.' };
  }
  if (view === 'attention') {
    const read = looked in tokens ? page.read(looked, looked + 1) : [];
    const weights = page.headWeights(page.look('attention', read), head);
    const most = Math.max(0.001, ...weights);
    weights.forEach((weight, i) => Object.assign(tokens[looked + 1 - read.length + i], { shade: weight / most, attention: weight }));
    return { tokens, line: 'The stronger the blue of a word, the more the chosen word attends to it.' };
  }
  return { tokens, line: 'Bold: your own words.' };
}

const Legend = ({ view, views, line, loss, invisible, unread, before }) => <div className="legend">
  <label htmlFor="view">Colours:</label>{' '}
  <select id="view" value={view} onChange={(event) => page.set({ view: event.target.value })}>
    {views.map((name) => <option key={name} value={name}>{VIEWS[name]}</option>)}
  </select>{' '}
  <span id="legend">
    {line ?? ['How likely the model found each token: ', ...LEVELS.map(({ name, className }) => <span key={name} className={`${className} level`}>{name}</span>)]}
    {loss != null && <span id="prompt-loss">The prompt’s mean loss: {loss.toFixed(2)} nats per token.</span>}
    {unread && ' Grey: too far back for the model to read.'}
    {invisible && ' ▯: an invisible character, or part of a character.'}
    {before > 0 && ` Your prompt’s beginning was cut off: the model reads only the last ${page.config.context_length} tokens.`}
  </span>
</div>;

// ‹ 2/3 ›: the other continuations tried here.
function Versions({ piece: { children, at }, piece }) {
  const busy = page.state.running !== null;
  const button = (name, sign, step) => <button type="button" aria-label={name} aria-disabled={busy} onClick={() => busy || page.show(piece, step)}>{sign}</button>;
  if (children.length < 2) return null;
  return <span className="versions"> {button('Previous version', '‹', -1)} {at + 1}/{children.length} {button('Next version', '›', 1)}</span>;
}

function Token({ token, index, canFocus, isLooked, isUnread, hint }) {
  const classes = ['token', !page.isGenerated(token) && 'prompt', isUnread && 'unread', token.className, hint && 'hinted'];
  const prob = token.logprob === undefined ? '' : `, ${page.percent(Math.exp(token.logprob))}, rank ${token.rank}`;
  const attention = token.attention === undefined ? '' : `, attention ${page.percent(token.attention)}`;
  const style = token.shade === undefined ? undefined : { background: `rgba(0, 114, 178, ${0.7 * Math.sqrt(token.shade)})` };
  return <>
    <span className={classes.filter(Boolean).join(' ')} data-index={index} data-marker={markerOf(token.text) || undefined} role="button" aria-label={`${token.label}${prob}${attention}`} aria-pressed={isLooked} tabIndex={canFocus ? 0 : -1} style={style}>
      {token.text}
    </span>
    {hint && <span className="hint" data-hint="‹ click or tap: the model was unsure here" />}
  </>;
}

function Editor({ caret }) {
  const box = useRef(null);
  useEffect(() => void (box.current.setSelectionRange(caret, caret), box.current.focus()), []); // scrolls to the cursor
  return <div className="column">
    <p className="legend">Text after the cursor is replaced. ‹ › brings the old version back.</p>
    <textarea id="edited" ref={box} aria-label="The text" defaultValue={page.text()} />
  </div>;
}

// The index of the nearest token in the line above (step -1) or below (1); the same index if there is none.
function besideLine(index, step) {
  const boxes = [...document.querySelectorAll('#text .token')].map((token) => token.getClientRects()[0] ?? {});
  const { top, left, height } = boxes[index];
  const far = (i) => Math.abs(boxes[i].left - left);
  const beyond = [...boxes.keys()].filter((i) => step * (boxes[i].top - top) > height / 2);
  return beyond.sort((i, j) => step * (boxes[i].top - boxes[j].top) || far(i) - far(j))[0] ?? index;
}

let hovering; // timer

function Text() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  const group = useRef(null);
  const end = useRef(null);
  const shown = page.document();
  const { chosen, running } = state;
  const pause = shown && page.pause();
  const length = shown ? page.tokensOf(shown).length : 0;
  const tokenAt = (index) => group.current?.querySelector(`[data-index="${index}"]`);
  const stop = shown && state.tab === 'guess' ? pause ?? page.promptOf(shown).length : length; // the rest is to be guessed
  const hint = !shown || state.hinted || running || stop < length ? null : page.hint();
  useEffect(() => void (group.current?.querySelector('.gap') ?? tokenAt(chosen ?? hint))?.scrollIntoView({ block: 'nearest' }), [chosen, hint, stop < length && stop, state.sheet]);
  // Keep the end of a growing text in view, unless the reader has scrolled away from it.
  useEffect(() => {
    if (!running || running === 'compare' || !end.current) return;
    const bottom = end.current.getBoundingClientRect().bottom;
    const above = document.getElementById('settings-line')?.getBoundingClientRect().top ?? innerHeight;
    if (bottom > above - 8 && bottom < above + 160) end.current.scrollIntoView({ block: 'center' });
  }, [length]);
  if (!shown) return null;

  const views = Object.keys(VIEWS).filter((name) => name !== 'drafts' || page.tokensOf(shown).some((token) => token.draft));
  const view = views.includes(state.view) ? state.view : 'plain';
  const { tokens, line, loss } = coloured(shown, view, state);
  const unread = stop - page.config.context_length;
  const looked = page.looked();
  const indexOf = (event) => Number(event.target.closest('.token')?.dataset.index ?? NaN);
  const onClick = (event) => Number.isNaN(indexOf(event)) || page.pick(indexOf(event));
  const onPointerOver = (event) => {
    clearTimeout(hovering);
    if (event.pointerType === 'mouse' && !Number.isNaN(indexOf(event))) hovering = setTimeout(page.hover, HOVER, indexOf(event));
  };
  const onPointerLeave = () => (clearTimeout(hovering), chosen !== null && page.hover(null));
  const onKeyDown = (event) => {
    const index = indexOf(event);
    if (Number.isNaN(index) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.length === 1 && event.key !== ' ' && !running) return page.edit(index); // the key goes into the editor
    const steps = { ArrowRight: () => index + 1, ArrowLeft: () => index - 1, Home: () => 0, End: () => length - 1, Enter: () => index, ' ': () => index, ArrowUp: () => besideLine(index, -1), ArrowDown: () => besideLine(index, 1) };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const to = Math.min(Math.max(steps[event.key](), 0), length - 1);
    page.pick(to);
    tokenAt(to)?.focus();
  };
  const facts = page.pieces(shown).findLast((piece) => piece.facts.length)?.facts ?? [];
  let first = 0; // token of a piece
  return <article className="document column" aria-label="Text">
    <Legend view={view} views={views} line={line} loss={loss} invisible={tokens.some(({ text }) => isInvisible(text))} unread={unread > 0} before={shown.before} />
    {state.editing !== null ? (
      <Editor caret={state.editing} />
    ) : (
      <div ref={group} id="text" role="group" aria-label="The text" onClick={onClick} onKeyDown={onKeyDown} onPointerOver={onPointerOver} onPointerLeave={onPointerLeave}>
        {page.pieces(shown).map((piece, number) => {
          const start = first;
          first += piece.tokens.length;
          return [<span key={number}>
            {tokens.slice(start, Math.min(first, stop)).map((token, i) => <Token key={start + i} token={token} index={start + i} canFocus={start + i === Math.min(chosen ?? 0, stop - 1)} isLooked={start + i === looked} isUnread={start + i < unread} hint={start + i === hint} />)}
          </span>, stop === length && <Versions key={`versions ${number}`} piece={piece} />];
        })}
        {stop < length && <span className="gap"> {pause !== null && (state.answer || (state.classroom?.bars && page.isAsked(pause))) ? page.wordAt(stop) : '?'} </span>}
        <span ref={end} className={running && running !== 'compare' ? 'caret' : ''} />
      </div>
    )}
    <p className="facts" aria-live="polite">{facts.join(' · ')}</p>
  </article>;
}

export default page.component('Text', Text);
