package plan

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxRecord bounds one prompt or conversation of a user's file, in bytes.
const maxRecord = 8 << 20

// expected ends every refusal of a record.
const expected = `expected {"prompt": "…"} with optional "id" and "task", or ShareGPT's {"conversations": [{"from": "human", "value": "…"}]}`

// LoadPrompts reads a user's own prompts; name is what errors call the source.
// UTF-8, with or without a byte order mark, in one of these forms:
//
//   - JSON lines {"prompt": "…"} or {"text": "…"}, with optional "id" and "task"
//     (a key of the table of tasks); other fields are not read
//   - JSON lines {"conversations": [{"from": "human", "value": "…"}, …]} with
//     optional "id", where "user" may stand for "human"
//   - one JSON array of such objects, as the ShareGPT files are
//
// Of a conversation the first human turn is the prompt; a conversation without
// one asks nothing and is left out. Texts are kept as they are. A record
// without an id is named after its line, and an id that was used before gets
// its line attached. One record is at most 8 MiB. The first bad record ends the
// reading with an error that names source and line; so does a source without
// a prompt.
func LoadPrompts(r io.Reader, name string) ([]Prompt, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	if head, _ := in.Peek(3); string(head) == "\uFEFF" {
		_, _ = in.Discard(3) // was peeked: cannot fail
	}
	// Peek's error, if it matters, comes back with the first Read.
	head, _ := in.Peek(4096)
	l := loader{name: name, used: make(map[string]bool)}
	read := l.lines
	if bytes.HasPrefix(bytes.TrimSpace(head), []byte("[")) {
		read = l.array
	}
	if err := read(in); err != nil {
		return nil, err
	}
	if len(l.prompts) == 0 {
		return nil, fmt.Errorf("%s: no prompt in it: %s", name, expected)
	}
	return l.prompts, nil
}

type loader struct {
	name    string
	prompts []Prompt
	used    map[string]bool // ids
}

func (l *loader) lines(in *bufio.Reader) error {
	s := bufio.NewScanner(in)
	s.Buffer(nil, maxRecord)
	line := 0
	for s.Scan() {
		line++
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		if err := l.add(s.Bytes(), line); err != nil {
			return err
		}
	}
	if errors.Is(s.Err(), bufio.ErrTooLong) {
		return l.tooLong(line + 1)
	}
	if s.Err() != nil {
		return fmt.Errorf("%s:%d: %w", l.name, line+1, s.Err())
	}
	return nil
}

// array reads element by element, so that a file of any size needs the memory
// of one conversation and of the prompts.
func (l *loader) array(in *bufio.Reader) error {
	src := &boundedReader{in: in, line: 1}
	dec := json.NewDecoder(src)
	_, err := dec.Token() // the bracket that brought us here
	for err == nil && dec.More() {
		var raw json.RawMessage
		if err = dec.Decode(&raw); err != nil {
			break
		}
		end := dec.InputOffset()
		if err := l.add(raw, src.lineAt(end-int64(len(raw)))); err != nil {
			return err
		}
		src.mark = end
	}
	if err == nil {
		_, err = dec.Token() // the closing bracket
	}
	if err == nil {
		if _, err = dec.Token(); err == io.EOF {
			return nil
		}
		if err == nil {
			err = errors.New("something follows the array")
		}
	}
	line := src.lineAt(dec.InputOffset())
	switch {
	case errors.Is(err, errTooLong):
		return l.tooLong(line)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s:%d: the array is cut short after this line: is the file complete?", l.name, line)
	default:
		return fmt.Errorf("%s: at or after line %d: %w; %s", l.name, line, err, expected)
	}
}

func (l *loader) tooLong(line int) error {
	return fmt.Errorf("%s:%d: a record of more than %d MiB: %s", l.name, line, maxRecord>>20, expected)
}

// record is what a line or an array element may hold.
type record struct {
	ID            json.RawMessage `json:"id"`
	Task          string          `json:"task"`
	Prompt        *string         `json:"prompt"`
	Text          *string         `json:"text"`
	Conversations *[]struct {
		From  string `json:"from"`
		Value string `json:"value"`
	} `json:"conversations"`
}

// ask returns what the record asks, and false for a conversation in which no
// human speaks.
func (r record) ask() (text string, ok bool, err error) {
	given := 0
	for _, s := range []*string{r.Prompt, r.Text} {
		if s != nil {
			text = *s
			given++
		}
	}
	if r.Conversations != nil {
		given++
	}
	switch {
	case given == 0:
		return "", false, errors.New(`no "prompt", "text" or "conversations"`)
	case given > 1:
		return "", false, errors.New(`more than one of "prompt", "text" and "conversations"`)
	case r.Conversations == nil:
		return text, true, nil
	}
	for _, turn := range *r.Conversations {
		if turn.From == "human" || turn.From == "user" {
			return turn.Value, true, nil
		}
	}
	return "", false, nil
}

func (l *loader) add(raw []byte, line int) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%s:%d: %s; %s", l.name, line, fmt.Sprintf(format, args...), expected)
	}
	if !utf8.Valid(raw) {
		return refuse("not UTF-8")
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return refuse("%q is a %s", wrong.Field, wrong.Value)
		}
		if errors.As(err, &wrong) {
			return refuse("a %s, not an object", wrong.Value)
		}
		return refuse("not JSON: %v", err)
	}
	text, ok, err := r.ask()
	switch {
	case err != nil:
		return refuse("%v", err)
	case !ok:
		return nil
	case strings.TrimSpace(text) == "":
		return refuse("an empty prompt")
	case strings.ContainsRune(text, utf8.RuneError) && !namesRuneError(raw):
		// encoding/json puts U+FFFD in place of half a surrogate pair.
		return refuse(`a \u escape that is no character`)
	}
	if r.Task != "" {
		if _, err := TaskByKey(r.Task); err != nil {
			return fmt.Errorf("%s:%d: %w", l.name, line, err)
		}
	}
	id, err := recordID(r.ID)
	if err != nil {
		return refuse("%v", err)
	}
	if id == "" {
		id = fmt.Sprintf("line-%d", line)
	}
	for l.used[id] {
		id = fmt.Sprintf("%s@%d", id, line)
	}
	l.used[id] = true
	l.prompts = append(l.prompts, Prompt{ID: id, Task: r.Task, Text: text})
	return nil
}

// namesRuneError tells whether the source itself holds U+FFFD.
func namesRuneError(raw []byte) bool {
	return bytes.ContainsRune(raw, utf8.RuneError) || bytes.Contains(bytes.ToLower(raw), []byte(`\ufffd`))
}

// recordID takes an id that is a string or a number; none and null are "".
func recordID(raw json.RawMessage) (string, error) {
	var id any
	if len(raw) == 0 {
		return "", nil
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		return "", err
	}
	switch id := id.(type) {
	case nil:
		return "", nil
	case string:
		return id, nil
	case float64:
		return string(raw), nil
	}
	return "", errors.New(`"id" is neither a string nor a number`)
}

var errTooLong = errors.New("record too long")

// boundedReader feeds a JSON decoder: it refuses more than maxRecord bytes
// beyond mark, and remembers where lines end.
type boundedReader struct {
	in   io.Reader
	read int64 // bytes given out
	mark int64 // end of the last whole element; the owner sets it

	ends []int64 // offsets of the newlines that lineAt has not passed
	line int     // line of the first byte after those it has passed
}

func (b *boundedReader) Read(p []byte) (int, error) {
	room := b.mark + maxRecord - b.read
	if room <= 0 {
		return 0, errTooLong
	}
	n, err := b.in.Read(p[:min(int64(len(p)), room)])
	for i, c := range p[:n] {
		if c == '\n' {
			b.ends = append(b.ends, b.read+int64(i))
		}
	}
	b.read += int64(n)
	return n, err
}

// lineAt is the 1-based line of the byte at offset. Offsets must not fall.
func (b *boundedReader) lineAt(offset int64) int {
	passed := 0
	for passed < len(b.ends) && b.ends[passed] < offset {
		passed++
	}
	b.ends = b.ends[passed:]
	b.line += passed
	return b.line
}
