package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/plan"
)

const (
	helpWidth  = 100 // columns
	helpIndent = 26  // where the text of a flag begins
)

// helpTemplate is the help of one command, ready: the library's own layout
// needs 200 columns for flags that take lists. path is what leads to it.
func helpTemplate(cmd *cli.Command, path string) string {
	var b strings.Builder
	b.WriteString(wrap(path+": "+cmd.Usage, 0) + "\n\n")
	usage := path
	if len(cmd.Subcommands) > 0 {
		usage += " [command]"
	}
	if len(cmd.Flags) > 0 {
		usage += " [flags]"
	}
	if cmd.ArgsUsage != "" {
		usage += " " + cmd.ArgsUsage
	}
	fmt.Fprintf(&b, "Usage: %s\n", usage)
	if cmd.Description != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimRight(cmd.Description, "\n"))
	}
	if len(cmd.Subcommands) > 0 {
		b.WriteString("\nCommands:\n")
		for _, sub := range cmd.Subcommands {
			if !sub.Hidden {
				writeItem(&b, strings.TrimSpace(sub.Name+" "+sub.ArgsUsage), sub.Usage)
			}
		}
	}
	for _, category := range categories(cmd.Flags) {
		title := category
		if title == "" {
			title = "Flags"
		}
		fmt.Fprintf(&b, "\n%s:\n", title)
		for _, f := range cmd.Flags {
			if categoryOf(f) == category && isVisible(f) {
				writeFlag(&b, f)
			}
		}
	}
	return strings.ReplaceAll(b.String(), "{{", `{{"{{"}}`)
}

// categories lists the categories of flags in the order of their first flag.
func categories(flags []cli.Flag) (list []string) {
	for _, f := range flags {
		if c := categoryOf(f); isVisible(f) && !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	return list
}

func categoryOf(f cli.Flag) string {
	if c, ok := f.(cli.CategorizableFlag); ok {
		return c.GetCategory()
	}
	return ""
}

func isVisible(f cli.Flag) bool {
	v, ok := f.(cli.VisibleFlag)
	return !ok || v.IsVisible()
}

func writeFlag(b *strings.Builder, f cli.Flag) {
	names := f.Names()
	head := "--" + names[0]
	for _, n := range names[1:] {
		if len(n) == 1 {
			head = "-" + n + ", " + head
		}
	}
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		writeItem(b, head, "")
		return
	}
	text := doc.GetUsage()
	if doc.TakesValue() {
		value := "N"
		if before, rest, quoted := strings.Cut(text, "`"); quoted {
			name, after, _ := strings.Cut(rest, "`")
			value, text = name, strings.TrimPrefix(before+name+after, name+": ")
		} else if _, isTime := f.(*cli.DurationFlag); isTime {
			value = "TIME"
		}
		head += " " + value
	}
	def := doc.GetDefaultText()
	if s, ok := f.(*cli.StringSliceFlag); ok && s.Value != nil {
		def = strings.Join(s.Value.Value(), ",")
	}
	if def = strings.Trim(def, `"`); def != "" && doc.TakesValue() {
		text += " (" + def + ")"
	}
	writeItem(b, head, text)
}

// writeItem writes a name and what it is, wrapped.
func writeItem(b *strings.Builder, name, text string) {
	line := "  " + name
	if len([]rune(line)) > helpIndent-2 {
		b.WriteString(line + "\n")
		line = ""
	}
	line += strings.Repeat(" ", helpIndent-len([]rune(line)))
	b.WriteString(strings.TrimRight(line+wrap(text, helpIndent), " ") + "\n")
}

// wrap breaks text into lines that end before helpWidth when the first begins
// at the column indent, as the others then do.
func wrap(text string, indent int) string {
	var b strings.Builder
	column := indent
	for i, word := range strings.Fields(text) {
		n := len([]rune(word))
		switch {
		case i > 0 && column+1+n > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		case i > 0:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}

// flagError says in our words what the flag parser found wrong.
func flagError(cmd *cli.Command, path string, err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		name = strings.TrimPrefix(name, "-")
		text = "there is no flag --" + name
		near := cli.SuggestFlag(cmd.Flags, name, true)
		if plan.Nearest(name, []string{strings.TrimLeft(near, "-")}) != "" { // near enough to be meant
			text += ", did you mean " + near + "?"
		}
	} else if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		text = fmt.Sprintf("--%s needs a value", strings.TrimPrefix(name, "-"))
	} else if m := regexp.MustCompile(`^invalid (?:boolean )?value "(.*)" for (?:flag )?-(\S+): (.*)$`).FindStringSubmatch(text); m != nil {
		want := "a number"
		for _, f := range cmd.Flags {
			if slices.Contains(f.Names(), m[2]) {
				switch f.(type) {
				case *cli.DurationFlag:
					want = "a time such as 30s or 2m"
				case *cli.BoolFlag:
					want = "true or false"
				case *cli.Uint64Flag:
					want = "a whole number from 0"
				}
			}
		}
		text = fmt.Sprintf("--%s %s: give %s", m[2], m[1], want)
	}
	return refuse("%s; see %s --help", text, path)
}
