package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// The scripts ask the program itself (--generate-bash-completion), so that
// they never fall behind it. fish gets a list, which is what its format is.
const (
	bashCompletion = `# bash completion for nativebench.  Load it with:  source <(nativebench completion bash)
_nativebench() {
	local current="${COMP_WORDS[COMP_CWORD]}" words
	words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	if [[ "$current" == -* ]]; then
		words+=("$current")
	fi
	COMPREPLY=($(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$current"))
}
complete -o default -F _nativebench nativebench
`
	zshCompletion = `#compdef nativebench
# zsh completion for nativebench.  Load it with:  source <(nativebench completion zsh)
_nativebench() {
	local -a words_so_far answers
	words_so_far=("${(@)words[1,CURRENT-1]}")
	if [[ "${words[CURRENT]}" == -* ]]; then
		words_so_far+=("${words[CURRENT]}")
	fi
	answers=("${(@f)$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 "${(@)words_so_far}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n "${answers[1]}" ]]; then
		_describe 'nativebench' answers
	else
		_files
	fi
}
compdef _nativebench nativebench
`
)

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a completion script for bash, zsh or fish",
		ArgsUsage: "bash|zsh|fish",
		Description: "Examples:\n" +
			"   source <(nativebench completion bash)\n" +
			"   source <(nativebench completion zsh)\n" +
			"   nativebench completion fish > ~/.config/fish/completions/nativebench.fish",
		BashComplete: func(c *cli.Context) { fmt.Fprintln(c.App.Writer, "bash\nzsh\nfish") },
		Action: func(c *cli.Context) error {
			switch shell := c.Args().First(); {
			case c.NArg() > 1:
				return refuse("completion takes one shell, not %d: choose from bash, zsh, fish", c.NArg())
			case shell == "bash":
				fmt.Fprint(c.App.Writer, bashCompletion)
			case shell == "zsh":
				fmt.Fprint(c.App.Writer, zshCompletion)
			case shell == "fish":
				script, err := c.App.ToFishCompletion()
				if err != nil {
					return err
				}
				fmt.Fprint(c.App.Writer, script)
			case shell == "":
				return refuse("completion of which shell? choose from bash, zsh, fish")
			default:
				return refuse("unknown shell %q: choose from bash, zsh, fish", shell)
			}
			return nil
		},
	}
}
