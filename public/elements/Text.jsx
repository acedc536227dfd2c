// The text: prompt and continuations as one, of tokens that can be clicked. It is a block, so that
// its text direction ends with it.
import { useEffect, useRef, useSyncExternalStore } from 'react';

const FOLDED = 120; // of a longer prompt, only so many tokens are shown at first

// The less likely, the more colour; the lines are for readers who cannot see the colours.
const LEVELS = [
  { least: 0.5, name: '50% or more', className: '' },
  { least: 0.1, name: '10 to 50%', className: 'level-1' },
  { least: 0.01, name: '1 to 10%', className: 'level-2' },
  { least: 0, name: 'below 1%', className: 'level-3' }
];
const levelOf = (logprob) => LEVELS.find((level) => Math.exp(logprob) >= level.least);

// Mark line ends, and tokens that have no visible character, so that they can be clicked.
const visible = (text) => text.replaceAll('\n', '↵\n').replace(/^[\p{Cf}\p{VS}]*$/u, '$&▯');

// The class of a token in each view, or its shade from 0 to 1.
const VIEWS = {
  plain: () => ({}),
  probs: (token) => ({ className: token.logprob === undefined ? '' : levelOf(token.logprob).className }),
  drafts: (token) => ({ className: token.draft ? 'from-draft' : '' }),
  copied: (token) => ({ className: token.runs ? 'from-story' : '' }),
  attention: (token) => ({ shade: token.share })
};

// The tokens, with the server's answers for the view: scores of the prompt, copied runs, attention.
function described(shown, { view, chosen, head }) {
  const tokens = page.tokensOf(shown).map((token) => ({ ...token }));
  const told = { tokens };
  if (view === 'probs') {
    const prompt = tokens.findIndex((token) => token.logprob !== undefined);
    const end = prompt < 0 ? tokens.length : prompt;
    const start = Math.max(0, end - page.config.context_length);
    const scores = end > 1 ? page.look('scores', tokens.slice(start, end).map((token) => token.id)) : undefined;
    scores?.tokens.forEach((score, i) => Object.assign(tokens[start + 1 + i], score));
    told.loss = scores?.loss;
  }
  if (view === 'copied' && page.state.running === null) {
    told.copied = page.copied();
    told.copied?.runs.forEach((run, number) => {
      for (let i = run.start; i < run.start + run.length; i++) (tokens[i].runs ??= []).push({ ...run, number: number + 1 });
    });
  }
  if (view === 'attention' && chosen !== null && chosen < tokens.length) {
    const read = page.read(chosen, chosen + 1);
    const weights = page.look('attention', read);
    const heads = head ? [weights?.[head.layer]?.[head.head]] : weights?.flat();
    if (heads?.[0]) {
      const shares = heads[0].map((_, i) => heads.reduce((sum, row) => sum + row[i], 0));
      const most = Math.max(1, ...shares);
      shares.forEach((share, i) =>
        Object.assign(tokens[chosen + 1 - read.length + i], { share: share / most, attention: share / heads.length / 1000 })
      );
    }
  }
  return told;
}

const Legend = ({ view, loss, copied, chosen }) => {
  if (view === 'probs')
    return (
      <p className="legend">
        How likely the model found each token:{' '}
        {LEVELS.map(({ name, className }) => <span key={name} className={`${className} level`}>{name}</span>)}
        {loss != null && <span id="prompt-loss">The prompt’s mean loss: {loss.toFixed(2)} nats per token.</span>}
      </p>
    );
  if (view === 'copied')
    return (
      <p className="legend">
        {copied
          ? `${page.percent(copied.share)} of this text is copied from the story.${copied.runs.length ? ' Click a blue passage to see where.' : ''}`
          : 'Searching the story…'}
      </p>
    );
  if (view === 'drafts')
    return <p className="legend"><span className="from-draft">These tokens</span> were drafted from the story, and the model accepted them.</p>;
  if (view === 'attention') return <Heads chosen={chosen} />;
  return null;
};

function Heads({ chosen }) {
  const { head } = page.state;
  const { head: number = 0, layer = 0 } = head ?? {};
  const choose = (name) => (event) => {
    const value = event.target.value;
    page.set({ head: value === 'mean' ? null : { layer, head: number, [name]: Number(value) } });
  };
  const options = (count) => [...Array(count).keys()].map((i) => <option key={i} value={i}>{i + 1}</option>);
  return (
    <p className="legend">
      {chosen === null ? 'Click a token: ' : 'How much the framed token attends to the tokens before it: '}
      <label>layer <select value={head ? layer : 'mean'} onChange={choose('layer')}><option value="mean">average</option>{options(page.config.layers)}</select></label>{' '}
      <label>head <select value={head ? number : 'mean'} onChange={choose('head')}><option value="mean">average</option>{options(page.config.heads)}</select></label>
    </p>
  );
}

// ‹ 2/3 ›: the continuations tried here.
const Versions = ({ piece }) =>
  piece.children.length > 1 && (
    <span className="versions" role="group" aria-label="Versions">
      <button type="button" aria-label="Previous version" disabled={page.state.running !== null} onClick={() => page.show(piece, -1)}>‹</button>
      <span> {piece.at + 1}/{piece.children.length} </span>
      <button type="button" aria-label="Next version" disabled={page.state.running !== null} onClick={() => page.show(piece, 1)}>›</button>
    </span>
  );

function Token({ token, index, first, isChosen, isPrompt, isUnread, view }) {
  const { className = '', shade } = VIEWS[view](token);
  const classes = ['token', isPrompt && 'prompt', isUnread && 'unread', className].filter(Boolean).join(' ');
  const prob = token.logprob === undefined ? '' : `, ${page.percent(Math.exp(token.logprob))}, rank ${token.rank}`;
  const attention = token.attention === undefined ? '' : `, attention ${page.percent(token.attention)}`;
  return (
    <span
      className={classes}
      data-index={index}
      role="button"
      aria-label={`${token.label}${prob}${attention}`}
      title={attention.slice(2) || undefined}
      aria-pressed={isChosen}
      tabIndex={isChosen || (first && page.state.chosen === null) ? 0 : -1}
      style={shade === undefined ? undefined : { background: `rgba(0, 114, 178, ${0.7 * Math.sqrt(shade)})` }}
    >
      {view === 'plain' ? token.text : visible(token.text)}
    </span>
  );
}

function Text() {
  const state = useSyncExternalStore(page.subscribe, page.get);
  const group = useRef(null);
  const shown = page.document();
  const { chosen, open, view, running } = state;
  useEffect(() => {
    if (open) group.current?.querySelector(`[data-index="${chosen}"]`)?.focus();
  }, [chosen, open]);
  // Keep the end of a growing text in view, unless the reader has scrolled away from it.
  const end = useRef(null);
  const length = shown ? page.tokensOf(shown).length : 0;
  useEffect(() => {
    if (!running || !end.current) return;
    const bottom = end.current.getBoundingClientRect().bottom;
    const above = document.getElementById('settings-line')?.getBoundingClientRect().top ?? innerHeight;
    if (bottom > above - 8 && bottom < above + 160) end.current.scrollIntoView({ block: 'center' });
  }, [length]);
  if (!shown) return null;

  const told = described(shown, state);
  const pieces = page.pieces(shown);
  const inPrompt = page.promptOf(shown).length;
  const hidden = state.unfolded ? 0 : Math.max(0, inPrompt - FOLDED);
  const pick = (event) => {
    const token = event.target.closest('.token');
    if (token) page.pick(Number(token.dataset.index));
  };
  const onKeyDown = (event) => {
    const index = Number(event.target.dataset?.index);
    if (Number.isNaN(index)) return;
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: hidden, End: length - 1, Enter: index, ' ': index }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    page.pick(Math.min(Math.max(to, hidden), length - 1));
  };
  const facts = pieces.flatMap((piece) => piece.facts.length ? [piece.facts] : []);
  let index = -1;
  return (
    <article className="document">
      <Legend view={view} chosen={chosen} {...told} />
      {hidden > 0 && (
        <button type="button" id="unfold" onClick={() => page.set({ unfolded: true })}>
          … {shown.before + hidden} earlier tokens of the prompt
        </button>
      )}
      <div ref={group} id="text" role="group" aria-label="The text" onClick={pick} onKeyDown={onKeyDown}>
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
                  first={index === hidden}
                  isChosen={index === chosen}
                  isPrompt={index < inPrompt}
                  isUnread={index < length - page.config.context_length}
                  view={view}
                />
              );
            })}
            <Versions piece={piece} />
          </span>
        ))}
        <span ref={end} className={running && running !== 'compare' ? 'caret' : ''} />
      </div>
      <p className="facts" aria-live="polite">{facts.length > 0 && facts.at(-1).join(' · ')}</p>
    </article>
  );
}

export default page.component('Text', Text);
