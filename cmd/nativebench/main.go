// Command nativebench measures what serving a language model costs over
// running it in process. Run it with --help.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Stdout, os.Stderr, os.Args))
}
