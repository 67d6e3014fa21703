package report

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"

	"github.com/nativebench/nativebench/internal/results"
)

// Terminal writes the report for people. No line is wider than 100 columns.
func Terminal(w io.Writer, runs []*results.Run, opt Options) error {
	d, err := newDocument(runs)
	if err != nil {
		return err
	}
	p := newPrinter(w, opt)
	for i, s := range d.sections() {
		if i > 0 {
			p.blank()
		}
		p.section(s)
	}
	_, err = io.WriteString(w, p.out.String())
	return err
}

// printer lays text out in columns of a terminal.
type printer struct {
	out   strings.Builder
	width int
	color bool
}

// Narrower than minWidth a table of two backends has no room left for its
// labels, which are cut to minLabel at most.
const (
	minWidth = 72
	minLabel = 20
)

func newPrinter(w io.Writer, opt Options) *printer {
	p := &printer{width: maxWidth, color: opt.Color == ColorAlways}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			p.width = n
		}
		if opt.Color == ColorAuto {
			// https://no-color.org: any value that is not empty.
			p.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		}
	}
	if opt.Width > 0 {
		p.width = opt.Width
	}
	p.width = min(max(p.width, minWidth), maxWidth)
	return p
}

func (p *printer) section(s section) {
	rule := p.width - text.StringWidth(s.title) - 4
	p.line(p.paint("──", faint) + " " + p.paint(s.title, strong) + " " + p.paint(strings.Repeat("─", max(rule, 0)), faint))
	p.blank()
	for _, l := range s.lead {
		p.wrapped("  ", "  ", l, faint)
		p.blank()
	}
	p.facts(s.facts)
	if len(s.facts) > 0 && len(s.grids) > 0 {
		p.blank()
	}
	for i, g := range s.grids {
		if i > 0 {
			p.blank()
		}
		p.grid(g)
	}
	if len(s.notes) > 0 {
		p.blank()
	}
	for i, n := range s.notes {
		mark := fmt.Sprintf("  [%d] ", i+1)
		p.wrapped(mark, strings.Repeat(" ", len(mark)), n, plain)
	}
}

// facts are names and texts in two columns.
func (p *printer) facts(facts []fact) {
	column := 0
	for _, f := range facts {
		column = max(column, text.StringWidth(f.name))
	}
	column = min(column, 24) + 4
	for _, f := range facts {
		p.wrapped(pad("  "+f.name, column), strings.Repeat(" ", column), f.text, f.tone)
	}
}

// grid prints a table. Joined columns are put into the column before them, so
// that rules stand between backends only. Heads stand in two lines where that
// makes it fit. A table that is too wide even so is printed in pieces as wide as
// each other, the first column before each.
func (p *printer) grid(g grid) {
	heads, widths := []grid{g}, g.widths()
	if !slices.ContainsFunc(g.columns, func(c column) bool { return c.joined }) && g.inAll(widths) > p.width {
		lines := g.twoLines()
		lower := lines[1].widths()
		for i, upper := range lines[0].widths() {
			lower[i] = columnWidth{max(lower[i].main, upper.main), max(lower[i].aside, upper.aside)}
		}
		if g.inAll(lower) <= p.width {
			heads, widths = lines, lower
		}
	}
	// need is the width of a column with those joined to it, and next the
	// column after them.
	need := func(i int) (width, next int) {
		width = ruleWidth + widths[i].total()
		for next = i + 1; next < len(g.columns) && g.columns[next].joined; next++ {
			width += joinWidth + widths[next].total()
		}
		return width, next
	}
	widest, columns := 0, 0
	for i := 1; i < len(g.columns); {
		w, next := need(i)
		widest, i = max(widest, w), next
		columns++
	}
	first := ruleWidth + widths[0].total()
	if most := max(p.width-widest, minLabel); first > most { // labels only: numbers are never cut
		widths[0].main = max(widths[0].main-(first-most), 1)
		first = ruleWidth + widths[0].total()
	}
	// most columns in a piece: as many as fit, then as few as make no more pieces.
	cut := func(most int) (ends []int) {
		for from := 1; from < len(g.columns) || from == 1; {
			to, room, n := from, p.width-first, 0
			for ; to < len(g.columns) && n < most; n++ {
				w, next := need(to)
				if room < w && to > from {
					break
				}
				to, room = next, room-w
			}
			from = max(to, from+1)
			ends = append(ends, to)
		}
		return ends
	}
	ends := cut(max(columns, 1))
	for most := columns - 1; most > 0; most-- {
		if fewer := cut(most); len(fewer) == len(ends) {
			ends = fewer
		}
	}
	from := 1
	for i, to := range ends {
		if i > 0 {
			p.blank()
		}
		p.piece(g, heads, widths, from, to)
		from = to
	}
}

// twoLines are two grids with the upper and the lower lines of the heads.
func (g grid) twoLines() []grid {
	upper, lower := g, g
	upper.columns, lower.columns = slices.Clone(g.columns), slices.Clone(g.columns)
	for i, c := range g.columns {
		above, below := "", c.head
		for at, r := range c.head {
			if r == ' ' && max(text.StringWidth(c.head[:at]), text.StringWidth(c.head[at+1:])) < max(text.StringWidth(above), text.StringWidth(below)) {
				above, below = c.head[:at], c.head[at+1:]
			}
		}
		upper.columns[i].head, lower.columns[i].head = above, below
	}
	return []grid{upper, lower}
}

// piece prints the first column of a table and those from from up to to, with the
// heads of each of heads.
func (p *printer) piece(g grid, heads []grid, widths []columnWidth, from, to int) {
	t := table.NewWriter()
	t.SetStyle(tableStyle())
	for _, h := range heads {
		t.AppendHeader(p.cells(h, widths, nil, from, to))
	}
	for i, r := range g.rows {
		if r.group && i > 0 {
			t.AppendSeparator()
		}
		t.AppendRow(p.cells(g, widths, &r, from, to))
	}
	for l := range strings.Lines(t.Render()) {
		p.line(" " + strings.TrimRight(l, " \n"))
	}
}

func tableStyle() table.Style {
	s := table.StyleLight
	s.Options = table.Options{SeparateColumns: true, SeparateHeader: true}
	s.Format = table.FormatOptions{} // our heads are written as they should be
	return s
}

// Between columns are " │ ", and as much before and behind; two spaces before one
// that is joined.
const ruleWidth, joinWidth = 3, 2

// inAll is the width of a table with columns of those widths.
func (g grid) inAll(widths []columnWidth) (sum int) {
	for i, w := range widths {
		if sum += ruleWidth + w.total(); g.columns[i].joined {
			sum += joinWidth - ruleWidth
		}
	}
	return sum
}

// width of one column of a grid: of main and of aside.
type columnWidth struct{ main, aside int }

func (c columnWidth) total() int {
	if c.aside == 0 {
		return c.main
	}
	return c.main + 1 + c.aside
}

func (g grid) widths() []columnWidth {
	w := make([]columnWidth, len(g.columns))
	for _, r := range g.rows {
		for i, f := range r.cells {
			if !r.group {
				w[i].main = max(w[i].main, text.StringWidth(f.main))
				w[i].aside = max(w[i].aside, text.StringWidth(f.aside))
			}
		}
	}
	widen := func(i, need int) {
		short := max(need-w[i].total(), 0)
		if w[i].aside > 0 {
			w[i].aside += short // behind the numbers, not before what qualifies them
		} else {
			w[i].main += short
		}
	}
	for i, c := range g.columns {
		widen(i, text.StringWidth(c.head))
		for _, r := range g.rows {
			if !r.group || i >= len(r.cells) {
				continue
			}
			need := text.StringWidth(r.cells[i].main)
			if i+1 < len(g.columns) && g.columns[i+1].joined {
				need -= 2 + w[i+1].total() // it may run on into the ratio's column
			}
			widen(i, need)
		}
	}
	return w
}

// cells makes one row for the table writer; nil is the head.
func (p *printer) cells(g grid, widths []columnWidth, r *row, from, to int) table.Row {
	out := table.Row{p.cell(g, widths, r, 0)}
	for i := from; i < to; i++ {
		s := p.cell(g, widths, r, i)
		if i+1 < to && g.columns[i+1].joined {
			if r != nil && r.group {
				s = p.free(r.at(i), widths[i].total()+2+widths[i+1].total())
			} else {
				s += "  " + p.cell(g, widths, r, i+1)
			}
			i++
		}
		out = append(out, s)
	}
	return out
}

// free is a text that does not line up with anything.
func (p *printer) free(f field, width int) string { return p.paint(pad(f.main, width), f.tone) }

func (p *printer) cell(g grid, widths []columnWidth, r *row, i int) string {
	w := widths[i]
	switch {
	case r == nil:
		h := g.columns[i].head
		if i == 0 {
			return p.paint(pad(shorten(h, w.total()), w.total()), strong)
		}
		left := 0
		if w.aside == 0 && !g.columns[i].left { // numbers alone: over their ends
			left = max(w.main-text.StringWidth(h), 0)
		}
		return p.paint(pad(strings.Repeat(" ", left)+h, w.total()), strong)
	case i >= len(r.cells):
		return strings.Repeat(" ", w.total())
	case r.group:
		f := r.cells[i]
		if i == 0 {
			f.tone = strong
		}
		f.main = shorten(f.main, w.total())
		return p.free(f, w.total())
	}
	f := r.cells[i]
	main := pad(shorten(f.main, w.main), w.main)
	if i > 0 && !g.columns[i].left {
		main = strings.Repeat(" ", max(w.main-text.StringWidth(f.main), 0)) + f.main
	}
	s := p.paint(main, f.tone)
	if w.aside > 0 {
		tone := f.tone
		if tone == plain {
			tone = faint
		}
		s += " " + p.paint(pad(f.aside, w.aside), tone)
	}
	return s
}

func (p *printer) line(s string) { p.out.WriteString(strings.TrimRight(s, " ") + "\n") }
func (p *printer) blank()        { p.out.WriteByte('\n') }

// wrapped prints a text behind an indent, in as many lines as it needs. A word
// that is longer than a line is cut.
func (p *printer) wrapped(first, next, s string, t tone) {
	room := max(p.width-text.StringWidth(next), 10)
	indent := first
	for _, l := range wrap(s, room) {
		p.line(indent + p.paint(l, t))
		indent = next
	}
}

func wrap(s string, room int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && text.StringWidth(line)+1+text.StringWidth(word) <= room {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		for text.StringWidth(word) > room {
			head := cut(word, room)
			lines, word = append(lines, head), word[len(head):]
		}
		line = word
	}
	if line != "" || len(lines) == 0 {
		lines = append(lines, line)
	}
	return lines
}

// cut returns the longest beginning of a word that fits; at least one rune.
func cut(word string, room int) string {
	width := 0
	for i, r := range word {
		if width += text.RuneWidth(r); width > room && i > 0 {
			return word[:i]
		}
	}
	return word
}

// shorten cuts a text that is too wide and says so.
func shorten(s string, width int) string {
	if text.StringWidth(s) <= width {
		return s
	}
	return cut(s, max(width-1, 1)) + "…"
}

// pad fills a text with spaces up to a width in columns.
func pad(s string, width int) string {
	return s + strings.Repeat(" ", max(width-text.StringWidth(s), 0))
}

// paint colours a text. go-pretty's own switch for colours is global and looks
// at the environment once, so only its escape sequences are used.
func (p *printer) paint(s string, t tone) string {
	if !p.color || strings.TrimSpace(s) == "" {
		return s
	}
	colors := map[tone]text.Colors{
		strong: {text.Bold},
		faint:  {text.Faint},
		good:   {text.FgGreen},
		bad:    {text.FgRed},
		alarm:  {text.FgYellow},
	}[t]
	if colors == nil {
		return s
	}
	return colors.EscapeSeq() + s + text.EscapeReset
}
