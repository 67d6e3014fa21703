package plan_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/internal/plan"
)

const bom = "\uFEFF"

func TestLoadPrompts(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []plan.Prompt
	}{
		{
			"lines", `{"prompt": "One", "id": "a", "task": "qa"}` + "\n" + `{"text":"둘","id":7,"other":[1]}` + "\n\n" + `{"prompt":" 3\n","id":null}`,
			[]plan.Prompt{{ID: "a", Task: "qa", Text: "One"}, {ID: "7", Text: "둘"}, {ID: "line-4", Text: " 3\n"}},
		},
		{
			"byte order mark and CRLF", bom + "{\"prompt\":\"a\"}\r\n\r\n{\"prompt\":\"b\"}\r\n",
			[]plan.Prompt{{ID: "line-1", Text: "a"}, {ID: "line-3", Text: "b"}},
		},
		{
			"ShareGPT array", bom + "[\r\n" +
				`{"id":"x","conversations":[{"from":"system","value":"s"},{"from":"human","value":"Hi"},{"from":"gpt","value":"Hello"},{"from":"human","value":"Bye"}]},` + "\n" +
				`{"id":"empty","conversations":[]}, {"id":"x","conversations":[{"from":"user","value":"Again"}]}` + "\n]\n",
			[]plan.Prompt{{ID: "x", Text: "Hi"}, {ID: "x@3", Text: "Again"}},
		},
		{
			"ShareGPT lines", `{"conversations":[{"from":"gpt","value":"?"}]}` + "\n" + `{"conversations":[{"from":"human","value":"Hi"}]}`,
			[]plan.Prompt{{ID: "line-2", Text: "Hi"}},
		},
		{
			"array of prompts over several lines", "\n\n[\n {\n  \"prompt\": \"a\"\n },\n\n {\"text\": \"b\"}]",
			[]plan.Prompt{{ID: "line-4", Text: "a"}, {ID: "line-8", Text: "b"}},
		},
		{
			"ids that meet the names of lines", `{"prompt":"a","id":"line-2"}` + "\n" + `{"prompt":"b"}`,
			[]plan.Prompt{{ID: "line-2", Text: "a"}, {ID: "line-2@2", Text: "b"}},
		},
		{
			"replacement characters that are the user's own", `{"prompt":"` + "\uFFFD" + `"}` + "\n" + `{"prompt":"\uFFFD \ud83d\ude00"}`,
			[]plan.Prompt{{ID: "line-1", Text: "\uFFFD"}, {ID: "line-2", Text: "\uFFFD 😀"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, r := range map[string]io.Reader{"whole": strings.NewReader(c.in), "byte by byte": iotest.OneByteReader(strings.NewReader(c.in))} {
				got, err := plan.LoadPrompts(r, "my.jsonl")
				if err != nil {
					t.Fatal(how, err)
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Error(how, diff)
				}
			}
		})
	}
}

func TestLoadPromptsReadsLargeArrays(t *testing.T) {
	// Far larger in all than one record may be.
	filler := strings.Repeat("x", 1<<20)
	var b strings.Builder
	b.WriteString("[\n")
	for i := range 12 {
		fmt.Fprintf(&b, "{\"id\":%d,\"prompt\":\"p\",\"filler\":%q},\n", i, filler)
	}
	b.WriteString(`{"id":"last","text":"q"}]`)
	got, err := plan.LoadPrompts(strings.NewReader(b.String()), "big.json")
	if err != nil || len(got) != 13 || got[12].ID != "last" {
		t.Errorf("%d prompts, %v", len(got), err)
	}
}

func TestLoadPromptsRefuses(t *testing.T) {
	long := strings.Repeat("x", 9<<20)
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", `f.jsonl: no prompt in it: expected {"prompt": "…"}`},
		{"blank", "\n \r\n", "no prompt in it"},
		{"empty array", "[]", "no prompt in it"},
		{"nobody asks", `{"conversations":[]}`, "no prompt in it"},
		{"not JSON", `{"prompt":"a"}` + "\nhello\n", "f.jsonl:2: not JSON: invalid character 'h'"},
		{"cut line", `{"prompt":"a`, "f.jsonl:1: not JSON"},
		{"two values on a line", `{"prompt":"a"}{"prompt":"b"}`, "f.jsonl:1: not JSON"},
		{"string", `"a"`, "f.jsonl:1: a string, not an object"},
		{"no field", `{"question":"a"}`, `f.jsonl:1: no "prompt", "text" or "conversations"; expected`},
		{"both fields", `{"prompt":"a","text":"b"}`, `more than one of "prompt", "text" and "conversations"`},
		{"number", `{"prompt":5}`, `f.jsonl:1: "prompt" is a number`},
		{"value of a turn", `{"conversations":[{"from":"human","value":["a"]}]}`, `value" is a array`},
		{"empty prompt", `{"prompt":" \n"}`, "f.jsonl:1: an empty prompt"},
		{"unknown task", `{"prompt":"a","task":"chta"}`, `f.jsonl:1: unknown task "chta": did you mean "chat"? choose from chat, summarization, qa, code`},
		{"id", `{"prompt":"a","id":["x"]}`, `"id" is neither a string nor a number`},
		{"not UTF-8", "{\"prompt\":\"a\"}\n{\"prompt\":\"\xff\"}", "f.jsonl:2: not UTF-8"},
		{"UTF-16", "\xff\xfe{\x00", "f.jsonl:1: not UTF-8"},
		{"half a surrogate pair", `{"prompt":"\ud83d"}`, `a \u escape that is no character`},
		{"long line", `{"prompt":"a"}` + "\n" + `{"prompt":"` + long + `"}`, "f.jsonl:2: a record of more than 8 MiB"},
		{"long element", "[\n" + `{"prompt":"a"},{"prompt":"` + long + `"}]`, "f.jsonl:2: a record of more than 8 MiB"},
		{"long white space", "[" + strings.Repeat(" ", 9<<20) + "]", "a record of more than 8 MiB"},
		{"array of strings", "[\n\"a\"]", "f.jsonl:2: a string, not an object"},
		{"bad element", "[{\"prompt\":\"a\"},\n\n{\"prompt\":1}]", `f.jsonl:3: "prompt" is a number`},
		{"cut array", "[\n{\"prompt\":\"a\"},\n", "the array is cut short after this line"},
		{"cut element", `[{"prompt":"a"`, "the array is cut short after this line"},
		{"broken array", "[{\"prompt\":\"a\"}\n}]", "f.jsonl: at or after line 2: invalid character"},
		{"two arrays", `[{"prompt":"a"}] []`, "something follows the array"},
		{"array not UTF-8", "[{\"prompt\":\"\xff\"}]", "f.jsonl:1: not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := plan.LoadPrompts(strings.NewReader(c.in), "f.jsonl")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if got != nil {
				t.Errorf("%d prompts beside an error", len(got))
			}
		})
	}
}

func TestLoadPromptsTellsReadErrors(t *testing.T) {
	broken := errors.New("disk is gone")
	for _, begin := range []string{"", `{"prompt":"a"}` + "\n", `[{"prompt":"a"},`} {
		_, err := plan.LoadPrompts(io.MultiReader(strings.NewReader(begin), iotest.ErrReader(broken)), "f")
		if !errors.Is(err, broken) {
			t.Errorf("after %q: %v", begin, err)
		}
	}
}

func FuzzLoadPrompts(f *testing.F) {
	for _, seed := range []string{
		"", "[", "[]", "{}", "null", "[null]", bom, "\n\n", "\xff",
		`{"prompt":"a"}`, bom + "{\"text\":\"a\",\"id\":1e3,\"task\":\"qa\"}\r\n", `{"prompt":"a","id":"\u0000"}`,
		`[{"id":"x","conversations":[{"from":"human","value":"Hi"},{"from":"gpt","value":"Hello"}]},{"prompt":"b"}]`,
		`{"conversations":[{"from":"gpt","value":"?"}]}` + "\n" + `{"conversations":[{"from":"user","value":"둘"}]}`,
		`{"prompt":"\ud800"}`, `{"prompt":"a"}` + "\n" + `{"prompt":"a"`, `[{"prompt":"a"},{"prompt":"b","id":"line-1"}]]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		prompts, err := plan.LoadPrompts(bytes.NewReader(data), "f")
		if (err == nil) != (len(prompts) > 0) {
			t.Fatalf("%d prompts, %v", len(prompts), err)
		}
		ids := map[string]bool{}
		for _, p := range prompts {
			if ids[p.ID] || p.ID == "" {
				t.Errorf("id %q is empty or there twice", p.ID)
			}
			ids[p.ID] = true
			if strings.TrimSpace(p.Text) == "" || !utf8.ValidString(p.Text) {
				t.Errorf("text %q", p.Text)
			}
			if p.Task != "" {
				if _, err := plan.TaskByKey(p.Task); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
