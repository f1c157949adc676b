// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func valid() Recipe {
	return Recipe{
		Env: []string{"A=b", "EMPTY="}, WorkingDir: "/",
		Checkout:  &Checkout{Repository: "https://git.example.com/a/b.git", Ref: "main", Directory: "/src"},
		Setup:     []Command{{Args: []string{"make"}, WorkingDir: "/src"}},
		WarmCache: []Command{{Args: []string{"cat", "-n", "/bin/sh"}}},
		Start:     &Command{Args: []string{"serve"}},
		Readiness: &Readiness{HTTP: &HTTP{Port: 80, Path: "/healthz?x=1"}, Timeout: time.Minute},
	}
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	if err := (Recipe{}).Validate(); err != nil {
		t.Errorf("an empty recipe: %v", err)
	}
	many := func(n int, s string) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = s
		}
		return out
	}
	for _, test := range []struct {
		name, field string
		change      func(*Recipe)
	}{
		{"env without name", "env[0]", func(r *Recipe) { r.Env = []string{"=x"} }},
		{"env without value", "env[0]", func(r *Recipe) { r.Env = []string{"A"} }},
		{"env with zero", "env[0]", func(r *Recipe) { r.Env = []string{"A=\x00"} }},
		{"env name with newline", "env[0]", func(r *Recipe) { r.Env = []string{"A\nB=c"} }},
		{"many env", "env ", func(r *Recipe) { r.Env = many(257, "A=b") }},
		{"relative directory", "workingDir", func(r *Recipe) { r.WorkingDir = "src" }},
		{"unclean directory", "workingDir", func(r *Recipe) { r.WorkingDir = "/a/../b" }},
		{"no program", "setup[0]", func(r *Recipe) { r.Setup = []Command{{}} }},
		{"empty program", "setup[0]", func(r *Recipe) { r.Setup = []Command{{Args: []string{""}}} }},
		{"zero in argument", "warmCache[0]", func(r *Recipe) { r.WarmCache = []Command{{Args: []string{"a", "\x00"}}} }},
		{"many arguments", "start", func(r *Recipe) { r.Start = &Command{Args: many(257, "a")} }},
		{"long argument", "start", func(r *Recipe) { r.Start = &Command{Args: []string{strings.Repeat("a", 64<<10+1)}} }},
		{"directory of a command", "setup[0]", func(r *Recipe) { r.Setup[0].WorkingDir = "/a/" }},
		{"many commands", "setup and warmCache", func(r *Recipe) {
			for range 64 {
				r.Setup = append(r.Setup, r.Setup[0])
			}
		}},
		{"too much", "all of it", func(r *Recipe) { r.Setup[0].Args = many(20, strings.Repeat("a", 60<<10)) }},
		{"no readiness", "readiness", func(r *Recipe) { r.Readiness = &Readiness{} }},
		{"two checks", "readiness", func(r *Recipe) { r.Readiness.TCP = &TCP{Port: 1} }},
		{"port", "readiness", func(r *Recipe) { r.Readiness = &Readiness{TCP: &TCP{Port: 65536}} }},
		{"http path", "readiness", func(r *Recipe) { r.Readiness.HTTP.Path = "http://elsewhere/" }},
		{"http path with newline", "readiness", func(r *Recipe) { r.Readiness.HTTP.Path = "/\r\nHost: x" }},
		{"negative timeout", "timeout", func(r *Recipe) { r.Timeout = -1 }},
		{"long timeout", "timeout", func(r *Recipe) { r.Timeout = 25 * time.Hour }},
		{"negative period", "readiness", func(r *Recipe) { r.Readiness.Period = -1 }},
		{"checkout into the root", "checkout.directory", func(r *Recipe) { r.Checkout.Directory = "/" }},
		{"checkout nowhere", "checkout.directory", func(r *Recipe) { r.Checkout.Directory = "" }},
		{"checkout into an option", "checkout.directory", func(r *Recipe) { r.Checkout.Directory = "-x" }},
	} {
		r := valid()
		test.change(&r)
		err := r.Validate()
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), ": "+test.field) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestValidateCheckout(t *testing.T) {
	for repository, ok := range map[string]bool{
		"https://git.example.com/a/b.git": true,
		"http://git.example.com:8080/b":   true,
		"git://git.example.com/b":         true,
		"ssh://git@git.example.com:22/b":  true,
		"file:///srv/git/b":               true,
		"":                                false,
		"/srv/git/b":                      false,
		"git@git.example.com:b":           false,
		"--upload-pack=touch /tmp/x":      false,
		"-u":                              false,
		"ext::sh -c touch% /tmp/x":        false,
		"ext://x/y":                       false,
		"ssh://-oProxyCommand=touch/x":    false,
		"ssh://-x@host/y":                 false,
		"ssh://host/-x":                   false,
		"https://":                        false,
		"https://host":                    false,
		"https://host/a b":                false,
		"https://host/a\nb":               false,
		"file://host/b":                   false,
		"https://host/" + strings.Repeat("a", 2<<10): false,
		"https:opaque":                                false,
		"FILE:///srv/git/b":                           true, // url.Parse folds case, git does as well
		"https://user:secret@git.example.com/b":       true,
		"fd::17":                                      false,
		"https://host/%00":                            true, // git's to refuse: no zero byte reaches it
		"https://ho\u200bst/" + "\u202e":              false,
		"https://host/\x7f":                           false,
		"javascript:alert(1)//git.example.com/a.git":  false,
		"https://git.example.com/../../../etc/passwd": true,
	} {
		if err := checkRepository(repository); (err == nil) != ok {
			t.Errorf("repository %q: %v", repository, err)
		}
	}
	for ref, ok := range map[string]bool{
		"main": true, "v1.2.3": true, "refs/heads/x": true, "feature/a-b_c": true, "0123abc": true, strings.Repeat("a", 255): true,
		"": false, "-b": false, "--upload-pack=x": false, "a b": false, "a\n": false, "a..b": false, "HEAD~1": false, "HEAD^": false,
		"a:b": false, "a?": false, "a*": false, "a[": false, `a\b`: false, "@": false, "@{u}": false, "/a": false, "a/": false, "a//b": false,
		"a.lock": false, "a.": false, "a\x7f": false, strings.Repeat("a", 256): false,
	} {
		if err := checkRef(ref); (err == nil) != ok {
			t.Errorf("ref %q: %v", ref, err)
		}
	}
}

// TestDigest: everything counts.
func TestDigest(t *testing.T) {
	seen := map[string]string{valid().Digest(): "valid"}
	for name, change := range map[string]func(*Recipe){
		"env":       func(r *Recipe) { r.Env[0] = "A=c" },
		"dir":       func(r *Recipe) { r.WorkingDir = "/a" },
		"checkout":  func(r *Recipe) { r.Checkout.Ref = "other" },
		"setup":     func(r *Recipe) { r.Setup[0].Args = []string{"ma", "ke"} },
		"warm":      func(r *Recipe) { r.WarmCache = nil },
		"start":     func(r *Recipe) { r.Start.WorkingDir = "/" },
		"readiness": func(r *Recipe) { r.Readiness.HTTP.Port++ },
		"timeout":   func(r *Recipe) { r.Timeout = 1 },
	} {
		r := valid()
		change(&r)
		d := r.Digest()
		if other, taken := seen[d]; taken {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		seen[d] = name
	}
	if one, other := valid(), valid(); one.Digest() != other.Digest() {
		t.Error("the digest is not stable")
	}
}

func TestPlans(t *testing.T) {
	lines := func(c Checkout) [][]string {
		var out [][]string
		for _, p := range c.plans() {
			var commands []string
			for _, c := range p {
				commands = append(commands, strings.TrimPrefix(strings.Join(c.Args, " "), "git -c core.hooksPath=/dev/null -c advice.detachedHead=false "))
			}
			out = append(out, commands)
		}
		return out
	}
	commit := strings.Repeat("a1", 20)
	full := func(ref string) []string {
		return []string{"clone --quiet --no-checkout -- https://h/r /src", "-C /src checkout --quiet --detach " + ref + " --"}
	}
	if diff := cmp.Diff([][]string{
		{"clone --quiet --no-checkout --depth=1 --single-branch --branch=main -- https://h/r /src", "-C /src checkout --quiet --detach HEAD --"},
		full("main"),
	}, lines(Checkout{"https://h/r", "main", "/src"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([][]string{full(commit)}, lines(Checkout{"https://h/r", commit, "/src"})); diff != "" {
		t.Error(diff)
	}
}

func TestTail(t *testing.T) {
	var o tail
	for range 5000 {
		o.add([]byte("zeile ä"), false)
	}
	o.add([]byte("\x1b[31mred\r"), false)
	o.add([]byte("\xff\x00 end"), true)
	got := o.String()
	if len(got) > maxOutput || len(got) < maxOutput-16 || !strings.HasSuffix(got, "zeile ä\n.[31mred\n.. end") {
		t.Errorf("%d bytes, ends %q", len(got), got[max(0, len(got)-40):])
	}
}
