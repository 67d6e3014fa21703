package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/nativebench/nativebench/internal/results"
)

// Markdown writes the report as the terminal shows it, for GitHub.
func Markdown(w io.Writer, runs []*results.Run, _ Options) error {
	d, err := newDocument(runs)
	if err != nil {
		return err
	}
	var b strings.Builder
	for i, s := range d.sections() {
		if i > 0 {
			b.WriteByte('\n')
		}
		markdownSection(&b, s)
	}
	_, err = io.WriteString(w, b.String())
	return err
}

func markdownSection(b *strings.Builder, s section) {
	fmt.Fprintf(b, "%s %s\n", strings.Repeat("#", s.rank+1), escape(s.title))
	for _, l := range s.lead {
		fmt.Fprintf(b, "\n%s\n", escape(l))
	}
	if len(s.facts) > 0 {
		b.WriteByte('\n')
		for i := 0; i < len(s.facts); i++ {
			f := s.facts[i]
			if f.name == "" {
				fmt.Fprintf(b, "  - %s\n", emphasis(f))
				continue
			}
			fmt.Fprintf(b, "- **%s**: %s\n", escape(f.name), emphasis(f))
		}
	}
	for _, g := range s.grids {
		b.WriteByte('\n')
		markdownGrid(b, g)
	}
	if len(s.notes) > 0 {
		b.WriteByte('\n')
		for i, n := range s.notes {
			fmt.Fprintf(b, "- [%d] %s\n", i+1, escape(n))
		}
	}
}

func emphasis(f fact) string {
	if f.tone == alarm {
		return "**" + escape(f.text) + "**"
	}
	return escape(f.text)
}

func markdownGrid(b *strings.Builder, g grid) {
	line := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	heads, rules := make([]string, len(g.columns)), make([]string, len(g.columns))
	for i, c := range g.columns {
		heads[i], rules[i] = escape(c.head), "---:"
	}
	rules[0] = ":---"
	line(heads)
	line(rules)
	for _, r := range g.rows {
		cells := make([]string, len(g.columns))
		for i, f := range r.cells {
			text := strings.TrimSpace(strings.TrimSpace(f.main) + " " + f.aside)
			if i == 0 && f.aside != "" && f.main != "" {
				text = fmt.Sprintf("%s (%s)", strings.TrimSpace(f.main), f.aside)
			}
			cells[i] = escape(strings.Join(strings.Fields(text), " "))
			if r.group && cells[i] != "" {
				cells[i] = "**" + cells[i] + "**"
			}
		}
		line(cells)
	}
}

// escape keeps a text from being read as markup: a pipe would end a cell, a
// tilde pair strikes out.
func escape(s string) string {
	return strings.NewReplacer("|", "\\|", "~", "\\~", "*", "\\*", "_", "\\_", "<", "&lt;", "`", "\\`", "\n", " ").Replace(s)
}
