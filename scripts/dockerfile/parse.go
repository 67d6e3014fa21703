package main

import (
	"fmt"
	"os"
	"strings"
)

// instruction is one step of a Dockerfile.
type instruction struct {
	line int    // where it begins, from 1
	name string // in capitals
	text string // what follows, on one line
}

// parse splits a Dockerfile into its instructions. Of the language it knows
// what ours use: no heredocs, no other escape character.
func parse(text string) ([]instruction, error) {
	var all []instruction
	var open *instruction
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "#") || trimmed == "" {
			continue // inside an instruction too
		}
		more := strings.HasSuffix(trimmed, `\`)
		trimmed = strings.TrimSpace(strings.TrimSuffix(trimmed, `\`))
		if open == nil {
			name, rest, _ := strings.Cut(trimmed, " ")
			all = append(all, instruction{i + 1, strings.ToUpper(name), strings.TrimSpace(rest)})
			open = &all[len(all)-1]
		} else {
			open.text += " " + trimmed
		}
		if strings.Contains(trimmed, "<<") {
			return nil, fmt.Errorf("line %d: heredocs are not understood here", i+1)
		}
		if !more {
			open = nil
		}
	}
	if open != nil {
		return nil, fmt.Errorf("line %d: %s has no end", open.line, open.name)
	}
	return all, nil
}

// flags splits the --name=value words off the beginning of an instruction.
func flags(text string) (flags []string, rest string) {
	for strings.HasPrefix(text, "--") {
		word, after, _ := strings.Cut(text, " ")
		flags = append(flags, word)
		text = strings.TrimSpace(after)
	}
	return flags, text
}

// words splits at spaces outside of double quotes, which are dropped.
func words(text string) []string {
	var all []string
	var b strings.Builder
	quoted, in := false, false
	for _, r := range text {
		switch {
		case r == '"':
			quoted, in = !quoted, true
		case r == ' ' && !quoted:
			if in {
				all = append(all, b.String())
				b.Reset()
				in = false
			}
		default:
			b.WriteRune(r)
			in = true
		}
	}
	if in {
		all = append(all, b.String())
	}
	return all
}

// expand replaces $NAME and ${NAME}. A name without a value is an error, and so
// is anything else in braces.
func expand(text string, vars map[string]string) (string, error) {
	var unknown []string
	out := os.Expand(text, func(name string) string {
		v, ok := vars[name]
		if !ok {
			unknown = append(unknown, name)
		}
		return v
	})
	if len(unknown) > 0 {
		return "", fmt.Errorf("%s is not set in %q", strings.Join(unknown, ", "), text)
	}
	return out, nil
}
