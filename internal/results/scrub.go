package results

import (
	"net/url"
	"regexp"
	"strings"
)

// Removed stands in place of a secret.
const Removed = "[removed]"

// ScrubArgs returns a copy of a command line without its secrets, for the
// manifest: values of flags that carry tokens, keys, passwords or headers,
// values of such environment assignments (HF_TOKEN=…), user information and
// signed parameters in URLs, and bare tokens of known form. It errs on the side
// of removing. Scrubbing twice changes nothing more.
func ScrubArgs(argv []string) []string {
	out := make([]string, len(argv))
	hide := "" // the flag whose value is the next argument
	for i, arg := range argv {
		switch {
		case hide != "":
			out[i], hide = scrubValue(hide, arg), ""
		case strings.HasPrefix(arg, "-"):
			name, value, joined := strings.Cut(arg, "=")
			switch {
			case joined && secretName(name):
				out[i] = name + "=" + scrubValue(name, value)
			case joined:
				out[i] = name + "=" + ScrubText(value)
			case strings.HasPrefix(arg, "-H") && len(arg) > 2: // -HName: value
				out[i] = "-H" + scrubValue("-H", arg[2:])
			default:
				out[i] = ScrubText(arg)
				if secretName(name) {
					hide = name
				}
			}
		default:
			out[i] = ScrubText(arg)
		}
	}
	return out
}

// scrubValue hides the value of a flag; of a header it keeps the name.
func scrubValue(flag, value string) string {
	if name, _, ok := strings.Cut(value, ":"); ok && headerFlag(flag) {
		return name + ": " + Removed
	}
	return Removed
}

func headerFlag(flag string) bool {
	f := strings.TrimLeft(flag, "-")
	return f == "H" || strings.HasPrefix(strings.ToLower(f), "header")
}

// secretName says whether a flag, variable or URL parameter of that name holds
// a secret. It looks at whole words, since --max-tokens and --token-file do not.
func secretName(name string) bool {
	if headerFlag(name) {
		return true
	}
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '-' || r == '_' || r == '.' })
	if len(words) == 0 {
		return false
	}
	switch words[len(words)-1] {
	case "token", "secret", "password", "passwd", "pwd", "apikey", "auth", "authorization", "bearer",
		"credential", "credentials", "signature", "sig", "cookie":
		return true
	case "key":
		if len(words) == 1 {
			return true
		}
		switch words[len(words)-2] {
		case "api", "access", "secret", "private", "auth":
			return true
		}
	}
	return false
}

var (
	urlPattern    = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>]+`)
	assignPattern = regexp.MustCompile(`\b([A-Za-z_][A-Za-z0-9_.-]*)=("[^"]*"|'[^']*'|[^\s&;,"']+)`)
	// Tokens as Hugging Face, OpenAI-like services and GitHub issue them, and bearer headers.
	tokenPattern  = regexp.MustCompile(`\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{16,})`)
	headerPattern = regexp.MustCompile(`(?i)\b(authorization:\s*)[^"'\n]+`)
	bearerPattern = regexp.MustCompile(`(?i)\b(bearer\s+)[^\s"'\[]+`)
)

// ScrubText removes secrets from a free text: user information and signed
// parameters of URLs, assignments to secret names, bearer headers, bare tokens.
func ScrubText(s string) string {
	s = urlPattern.ReplaceAllStringFunc(s, scrubURL)
	s = assignPattern.ReplaceAllStringFunc(s, func(m string) string {
		if name, _, _ := strings.Cut(m, "="); secretName(name) {
			return name + "=" + Removed
		}
		return m
	})
	s = headerPattern.ReplaceAllString(s, "${1}"+Removed)
	s = bearerPattern.ReplaceAllString(s, "${1}"+Removed)
	return tokenPattern.ReplaceAllString(s, Removed)
}

// scrubURL removes user information and secret parameters from one URL, and
// keeps everything else as it was typed.
func scrubURL(s string) string {
	scheme, rest, _ := strings.Cut(s, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, tail := rest[:end], rest[end:]
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		authority = Removed + authority[at:]
	}
	path, query, hasQuery := strings.Cut(tail, "?")
	if hasQuery {
		pairs := strings.Split(query, "&")
		for i, p := range pairs {
			name, _, ok := strings.Cut(p, "=")
			if plain, err := url.QueryUnescape(name); ok && err == nil && secretName(plain) {
				pairs[i] = name + "=" + Removed
			}
		}
		path += "?" + strings.Join(pairs, "&")
	}
	return scheme + "://" + authority + path
}
