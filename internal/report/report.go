// Package report prints runs, for people and for programs, from their
// directories alone. What a number means is decided in measure; here it is only
// laid out.
//
// It is stage 5 of the pipeline plan → runner → results → measure → report.
//
//	results.Run → document (numbers) → sections (tables, notes) → terminal, markdown
//	                                 ↘ csv, json
package report

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nativebench/nativebench/internal/results"
)

// Format is one way to print runs.
type Format struct {
	Name  string
	Alias string // a shorter name that is taken too
	About string
	Write func(w io.Writer, runs []*results.Run, opt Options) error
}

// Options are how, not what. The zero value suits a file, a pipe and a
// terminal.
type Options struct {
	Width int   // columns, 72 to 100; 0: the terminal's, 100 for anything else
	Color Color // of the terminal format
}

// Color says when to use colour.
type Color int

const (
	ColorAuto Color = iota // on a terminal, unless NO_COLOR is set or TERM is dumb
	ColorNever
	ColorAlways
)

// maxWidth bounds every line of the terminal format, in columns.
const maxWidth = 100

// Formats returns the table of formats, the default first.
func Formats() []Format {
	return []Format{
		{"terminal", "term", "tables for people; plain text when piped", Terminal},
		{"markdown", "md", "the same for GitHub", Markdown},
		{"csv", "csv", "one row per load, backend and metric; base units", CSV},
		{"json", "json", "everything, definitions included; base units", JSON},
	}
}

// ByName finds a format. The error of an unknown name lists the names.
func ByName(name string) (Format, error) {
	var names []string
	for _, f := range Formats() {
		if name == f.Name || name == f.Alias {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Format{}, fmt.Errorf("unknown format %q: choose from %s", name, strings.Join(names, ", "))
}

var errNoRuns = errors.New("report: no run was given")
