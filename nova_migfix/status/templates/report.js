
'use strict';
// The page has elements only for one page of a table; other rows are data.

const ROWS = 50;
const ROWS_PRINTED = 1000;
const HOSTS_DRAWN = 20;
const ANY = '';

const $ = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString('en');

// -- data ---------------------------------------------------------------------

const data = JSON.parse($('data').textContent);
const {hosts, strings, columns} = data;
const searched = ['instance', 'domain', 'finding', 'device', 'running', 'computed', 'bug', 'fix', 'otherwise'];

for (const host of hosts) {
  host.findings = [];
  host.notes = host.notes.map((number) => strings[number]);
  host.text = [host.host, host.name, host.state, ...host.why, ...host.notes].join('\n').toLowerCase();
}
const findings = data.findings.map(([number, ...values]) => {
  const row = {host: hosts[number]};
  columns.forEach((name, index) => { row[name] = strings[values[index]]; });
  row.text = searched.map((name) => row[name]).join('\n').toLowerCase();
  row.host.findings.push(row);
  return row;
});

// Classes of guests with equal needs, and of hosts with equal capabilities.
const hostClasses = data.placement.hosts.map((numbers) => numbers.map((number) => hosts[number]));
const guestClasses = data.placement.guests.map((guests) => {
  const needs = guests.needs.map((number) => strings[number]);
  const cells = guests.cells.map(([verdict, ...reasons]) => ({verdict, reasons: reasons.map((number) => strings[number])}));
  const where = new Map(guests.where.map(([number, many]) => [hosts[number], many]));
  return {needs, cells, where, text: [...needs, ...cells.flatMap((cell) => cell.reasons)].join('\n').toLowerCase()};
});

// -- filters ------------------------------------------------------------------

const form = $('filters');
const filters = ['host', 'drain', 'finding', 'covered', 'text'].map($);

function wanted() {
  const want = Object.fromEntries(filters.map((field) => [field.id, field.value]));
  return {...want, host: want.host.trim().toLowerCase(), text: want.text.trim().toLowerCase()};
}

function hostFilter({host, drain}) {
  // A complete name selects only that host, not others with this beginning.
  const whole = hosts.some((other) => other.host.toLowerCase() === host);
  return (candidate) => {
    const name = candidate.host.toLowerCase();
    return (drain === ANY || candidate.drain === drain) && (whole ? name === host : name.includes(host));
  };
}

function select(want) {
  const ofHosts = hosts.filter(hostFilter(want));
  const kept = new Set(ofHosts);
  const ofFindings = findings.filter((row) => kept.has(row.host)
    && (want.finding === ANY || row.finding === want.finding)
    && (want.covered === ANY || row.covered === want.covered)
    && (want.text === ANY || row.text.includes(want.text) || row.host.text.includes(want.text)));
  const withFindings = new Set(ofFindings.map((row) => row.host));
  const byFinding = want.finding !== ANY || want.covered !== ANY;
  return {
    findings: ofFindings,
    guests: guestsOf(ofFindings),
    placement: placed(kept, want.text),
    hosts: ofHosts.filter((host) => withFindings.has(host)
      || (!byFinding && (want.text === ANY || host.text.includes(want.text)))),
  };
}

// Classes with guests on the selected hosts, the largest first.
function placed(kept, text) {
  return guestClasses.filter((guests) => text === ANY || guests.text.includes(text)).map((guests) => {
    const on = [...guests.where].filter(([host]) => kept.has(host));
    return {...guests, on, number: on.reduce((sum, [, many]) => sum + many, 0)};
  }).filter((guests) => guests.number).sort((one, other) => other.number - one.number);
}

function guestsOf(rows) {
  const guests = new Map();
  for (const row of rows) {
    const key = `${row.host.host} ${row.instance}`;
    const guest = guests.get(key) || {...row, findings: []};
    guest.findings.push(row);
    guests.set(key, guest);
  }
  return [...guests.values()];
}

// -- tables -------------------------------------------------------------------

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const VERDICTS = ['yes', 'unknown', 'no'];
const COVERED = {yes: 'yes', no: 'no'};
const badge = (text, className) => element('span', text, `badge ${className}`);
const shown = (value) => (value === null ? '–' : value);
const guestCount = (rows) => new Set(rows.map((row) => row.instance)).size;
const lines = (texts) => texts.map((text) => element('p', text));

// A list that has elements only while it is open.
function folded(title, list) {
  const made = element('details');
  const summary = element('summary');
  summary.append(title);
  made.append(summary);
  made.addEventListener('toggle', () => made.append(element('p', list().join(', '))), {once: true});
  return made;
}

const hostCount = (number) => `${count(number)} ${number === 1 ? 'host' : 'hosts'}`;

function destinations(host) {
  return VERDICTS.flatMap((verdict) => {
    const there = host.destinations[verdict].flatMap((number) => hostClasses[number]).filter((other) => other !== host);
    const title = badge(`${verdict}: ${hostCount(there.length)}`, verdict);
    return there.length ? [folded(title, () => there.map((other) => other.host))] : [];
  });
}

const cells = (verdict) => (guests) => {
  const found = new Map();
  guests.cells.forEach((cell, number) => {
    const key = cell.reasons.join('\n');
    if (cell.verdict === verdict) found.set(key, {...cell, hosts: [...(found.get(key) || {hosts: []}).hosts, ...hostClasses[number]]});
  });
  return [...found.values()].flatMap((cell) => [
    folded(hostCount(cell.hosts.length), () => cell.hosts.map((host) => host.host)), ...lines(cell.reasons)]);
};

function details(host) {
  const checks = host.checks.map(([check, , text]) => `${strings[check]}: ${strings[text]}`);
  const texts = [...checks, ...host.notes];
  if (!texts.length) return '';
  const made = element('details');
  made.append(element('summary', `show ${texts.length}`), ...lines(texts));
  return made;
}

// Title, CSS class, and content of a cell: a text, or elements.
const VIEWS = {
  hosts: [
    ['Host', 'short', (host) => host.host],
    ['Safe to drain', 'short', (host) => [
      badge(host.drain, host.drain), ' ', host.state === 'answered' ? '' : badge(host.state, 'unknown')]],
    ['Why', 'wide', (host) => lines(host.why)],
    ['Drain to', 'short', destinations],
    ['Guests', 'number', (host) => count(host.guests)],
    ['With findings', 'number', (host) => count(guestCount(host.findings))],
    ['Fixes', '', (host) => host.fixes.join(', ')],
    ['Checks and notes', '', details],
  ],
  placement: [
    ['Guests', 'number', (guests) => count(guests.number)],
    ['On', 'short', (guests) => folded(hostCount(guests.on.length), () => guests.on.map(([host, many]) => `${host.host} (${count(many)})`))],
    ['Needs', '', (guests) => lines(guests.needs)],
    ['Can run on', 'short', cells('yes')],
    ['Not known on', '', cells('unknown')],
    ['Cannot run on', '', cells('no')],
  ],
  guests: [
    ['Guest', 'code', (guest) => guest.instance],
    ['Domain', 'short', (guest) => shown(guest.domain)],
    ['Host', 'short', (guest) => guest.host.host],
    ['Findings', '', (guest) => guest.findings.flatMap((row) => [
      badge(row.finding, ['yes', 'changes', 'no'][row.result]), ' '])],
  ],
  findings: [
    ['Guest', 'code', (row) => row.instance],
    ['Host', 'short', (row) => row.host.host],
    ['Finding', 'short', (row) => row.finding],
    ['Device', 'code', (row) => shown(row.device)],
    ['Now', 'code', (row) => shown(row.running)],
    ['Then', 'code', (row) => shown(row.computed)],
    ['Covered', '', (row) => [badge(row.covered, COVERED[row.covered] || 'depends'), ' ', row.fix]],
    ['Bug', '', (row) => shown(row.bug)],
    ['Otherwise', '', (row) => shown(row.otherwise)],
  ],
};

function tableRow(view, item) {
  const made = element('tr');
  for (const [, className, content] of VIEWS[view]) {
    const cell = element('td', undefined, className);
    cell.append(...[content(item)].flat());
    made.append(cell);
  }
  return made;
}

function showTable(first, number) {
  const view = form.elements.view.value;
  const items = selected[view];
  const page = items.slice(first, first + number);
  const head = element('tr');
  head.append(...VIEWS[view].map(([title]) => {
    const cell = element('th', title);
    cell.scope = 'col';
    return cell;
  }));
  $('table').tHead.replaceChildren(head);
  $('table').tBodies[0].replaceChildren(...page.map((item) => tableRow(view, item)));
  $('range').textContent = items.length
    ? `${count(first + 1)} to ${count(first + page.length)} of ${count(items.length)}` : 'nothing';
  $('previous').disabled = first === 0;
  $('next').disabled = first + number >= items.length;
}

// -- chart --------------------------------------------------------------------

function svg(name, attributes, text) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  if (text !== undefined) made.textContent = text;
  return made;
}

// Map of each finding in rows: {guests, result}.
function tally(rows) {
  const found = new Map();
  for (const row of rows) {
    const cell = found.get(row.finding) || {guests: new Set(), result: 0};
    cell.guests.add(row.instance);
    cell.result = Math.max(cell.result, row.result);
    found.set(row.finding, cell);
  }
  return found;
}

function showChart() {
  const byHost = new Map();
  for (const row of selected.findings) {
    if (!byHost.has(row.host)) byHost.set(row.host, []);
    byHost.get(row.host).push(row);
  }
  const harm = (rows) => guestCount(rows.filter((row) => row.result === 2));
  const ranked = [...byHost].map(([host, rows]) => [host, rows, harm(rows), guestCount(rows)])
    .sort((one, other) => other[2] - one[2] || other[3] - one[3]);
  const drawn = ranked.slice(0, HOSTS_DRAWN);
  const all = tally(selected.findings);
  const kinds = [...all.keys()].sort();
  $('chart').replaceChildren(kinds.length ? draw(kinds, all, drawn) : element('p', 'No findings.'));
  if (ranked.length > drawn.length) {
    $('chart').append(element('p', `The ${drawn.length} hosts with the most guests that would fail, of ${count(ranked.length)} hosts with findings.`, 'legend'));
  }
}

function draw(kinds, all, drawn) {
  const [left, top, width, height] = [190, 24, 112, 24];
  const total = {width: left + width * kinds.length, height: top + height * (drawn.length + 1) + 8};
  const made = svg('svg', {...total, viewBox: `0 0 ${total.width} ${total.height}`, role: 'img', 'aria-labelledby': 'chart-title'});
  kinds.forEach((kind, column) => made.append(
    svg('text', {x: left + width * (column + .5), y: top - 9, 'text-anchor': 'middle', class: 'soft'}, kind)));
  const most = Math.max(...drawn.flatMap(([, rows]) => [...tally(rows).values()].map((cell) => cell.guests.size)));
  drawRow(made, 'all hosts', ANY, all, top, Math.max(...[...all.values()].map((cell) => cell.guests.size)));
  drawn.forEach(([host, rows], index) => drawRow(
    made, host.host, host.host, tally(rows), top + 8 + height * (index + 1), most));
  return made;

  function drawRow(into, title, name, cells, y, scale) {
    const label = svg('text', {x: left - 10, y: y + 16, 'text-anchor': 'end', 'data-host': name}, shorten(title));
    label.append(svg('title', {}, title));
    into.append(label);
    kinds.forEach((kind, column) => {
      const cell = cells.get(kind);
      const place = {x: left + width * column + 1, y: y + 1, width: width - 2, height: height - 2, rx: 3};
      if (!cell) {
        into.append(svg('rect', {...place, class: 'r0', 'fill-opacity': .04}));
        return;
      }
      const number = cell.guests.size;
      const group = svg('g', {'data-host': name, 'data-finding': kind});
      group.append(
        svg('title', {}, `${title}, ${kind}: ${count(number)} guests`),
        svg('rect', {...place, class: `r${cell.result}`, 'fill-opacity': .15 + .45 * number / scale}),
        svg('text', {x: place.x + place.width / 2, y: y + 16, 'text-anchor': 'middle'}, count(number)));
      into.append(group);
    });
  }
}

const shorten = (text) => (text.length > 26 ? `${text.slice(0, 25)}…` : text);

// -- selection and pages ------------------------------------------------------

let selected;
let first = 0;

function show() {
  selected = select(wanted());
  first = 0;
  for (const view of Object.keys(VIEWS)) $(`n-${view}`).textContent = count(selected[view].length);
  showChart();
  showTable(first, ROWS);
}

function turn(rows) {
  first += rows;
  showTable(first, ROWS);
}

function addOptions(field, name) {
  const numbers = new Map();
  for (const row of findings) numbers.set(row[name], (numbers.get(row[name]) || 0) + 1);
  for (const [value, number] of [...numbers].sort()) {
    const option = element('option', `${value} (${count(number)})`);
    option.value = value;
    field.append(option);
  }
}

addOptions($('finding'), 'finding');
addOptions($('covered'), 'covered');
$('hosts').append(...hosts.map(({host}) => {
  const option = element('option');
  option.value = host;
  return option;
}));
form.addEventListener('submit', (event) => event.preventDefault());
// A reset event comes before the fields have their initial values.
$('clear').addEventListener('click', () => {
  form.reset();
  show();
});
// Listens on the page: the choice of a table belongs to the form, but is outside of it.
addEventListener('input', show);
$('previous').addEventListener('click', () => turn(-ROWS));
$('next').addEventListener('click', () => turn(ROWS));
$('chart').addEventListener('click', (event) => {
  const target = event.target.closest('[data-host]');
  if (!target) return;
  $('host').value = target.dataset.host;
  if (target.dataset.finding) $('finding').value = target.dataset.finding;
  show();
});
addEventListener('beforeprint', () => showTable(first, ROWS_PRINTED));
addEventListener('afterprint', () => showTable(first, ROWS));
show();
