// A table of words with bars: filled, and outlined for a second probability beside it. `heads`: of the words
// and of the columns at the right; `rows`: { key, label, bar, outline, own, cells }.
const wide = (share) => ({ width: `${100 * share}%` });

const Bars = ({ heads: [first, ...others], rows }) => <table className="bars">
  <thead><tr><th scope="col">{first}</th><td />{others.map((head) => <th key={head} scope="col">{head}</th>)}</tr></thead>
  <tbody>
    {rows.map(({ key, label, bar, outline, own, cells }) => <tr key={key} className={own ? 'own' : ''}>
      <th scope="row">{label}</th>
      <td className="bar" aria-hidden="true">
        {outline !== undefined && <div className="by-model" style={wide(outline)} />}
        <div className="by-settings" style={wide(bar)} />
      </td>
      {cells.map((cell, i) => <td key={i}>{cell}</td>)}
    </tr>)}
  </tbody>
</table>;

export default page.part('Bars', Bars);
