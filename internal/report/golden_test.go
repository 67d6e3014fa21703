package report

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/internal/results"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares what was written with a file of testdata.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./internal/report -update writes it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update takes it over):\n%s", path, diff)
	}
}

func write(t *testing.T, f func(*bytes.Buffer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := f(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fixtures are the runs that are printed in every format.
func fixtures() map[string][]*results.Run {
	return map[string][]*results.Run{
		"full": {fullFixture()},
		"pair": pairFixture(),
		"four": {fourFixture()},
		"one":  {oneFixture()},
		"gpu":  {gpuFixture()},
	}
}

func TestGolden(t *testing.T) {
	endings := map[string]string{"terminal": "txt", "markdown": "md", "csv": "csv", "json": "json"}
	for name, runs := range fixtures() {
		for _, f := range Formats() {
			if (f.Name == "csv" || f.Name == "json") != (name == "one") {
				continue // they are long, and short in what they show
			}
			t.Run(name+"/"+f.Name, func(t *testing.T) {
				got := write(t, func(b *bytes.Buffer) error { return f.Write(b, runs, Options{}) })
				golden(t, filepath.Join("testdata", name+"."+endings[f.Name]), got)
			})
		}
	}
}
