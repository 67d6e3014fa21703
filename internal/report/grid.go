package report

import (
	"fmt"
	"slices"
)

// section is one part of the report for people: a title, sentences, tables,
// and the notes that the tables point to.
type section struct {
	title string
	rank  int      // 1: a part of the report; 2: a part of a part
	lead  []string // before the tables
	facts []fact   // before the tables: name and text
	grids []grid
	notes []string // [1], [2], … in the tables
}

// fact is a name and what there is to say of it.
type fact struct {
	name, text string
	tone       tone
}

// grid is a table. The first column is of labels.
type grid struct {
	columns []column
	rows    []row
}

// column is the head of a column.
type column struct {
	head string
	// joined: the column belongs to the one before it, as a ratio to its value.
	joined bool
	// left: its texts begin together, as ratios do, whose points then line up.
	left bool
}

// row is a line of a grid, or the head of the lines beneath it.
type row struct {
	group bool
	cells []field
}

// field is what stands in one cell of a grid. main is aligned to the right (to
// the left in the first column), aside to the left behind it, so that numbers
// and what qualifies them line up.
type field struct {
	main, aside string
	tone        tone
}

// tone is what a text means, for colour.
type tone int

const (
	plain tone = iota
	strong
	faint
	good
	bad
	alarm
)

// notebook numbers notes; the same text gets the same number.
type notebook struct{ texts []string }

func (n *notebook) ref(text string) string {
	i := slices.Index(n.texts, text)
	if i < 0 {
		n.texts = append(n.texts, text)
		i = len(n.texts) - 1
	}
	return fmt.Sprintf("[%d]", i+1)
}

// refs returns the marks of several notes: "[1][3]".
func (n *notebook) refs(texts []string) (marks string) {
	for _, t := range texts {
		marks += n.ref(t)
	}
	return marks
}

// at is a field of a row, empty beyond its end.
func (r row) at(i int) field {
	if i < len(r.cells) {
		return r.cells[i]
	}
	return field{}
}
