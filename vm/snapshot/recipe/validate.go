// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package recipe

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Bounds of a recipe. All of it is in an API object and in the arguments of processes.
const (
	maxCommands   = 64
	maxArgs       = 256
	maxArgBytes   = 64 << 10
	maxEnv        = 256
	maxPathBytes  = 4 << 10
	maxURLBytes   = 2 << 10
	maxRefBytes   = 255
	maxTotalBytes = 512 << 10
)

// Defaults and bounds of time.
const (
	DefaultTimeout          = 30 * time.Minute
	DefaultReadinessTimeout = time.Minute
	DefaultReadinessPeriod  = time.Second
	MaxTimeout              = 24 * time.Hour
)

// schemes of repositories. git runs a program for others, "ext" for example.
var schemes = []string{"https", "http", "git", "ssh", "file"}

// ErrInvalid means that a recipe contains what cannot be done or must not be tried.
var ErrInvalid = errors.New("invalid template")

// Validate checks a recipe and reports every fault, joined; each is ErrInvalid and
// names the field. Pure.
func (r Recipe) Validate() error {
	var errs []error
	check := func(field string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: %s %w", ErrInvalid, field, err))
		}
	}
	if len(r.Env) > maxEnv {
		check("env", fmt.Errorf("has %d entries, at most %d are allowed", len(r.Env), maxEnv))
	}
	for i, e := range r.Env {
		check(fmt.Sprintf("env[%d]", i), checkEnv(e))
	}
	check("workingDir", checkDir(r.WorkingDir, true))
	if c := r.Checkout; c != nil {
		check("checkout.repository", checkRepository(c.Repository))
		check("checkout.ref", checkRef(c.Ref))
		check("checkout.directory", checkDir(c.Directory, false))
	}
	if n := len(r.Setup) + len(r.WarmCache); n > maxCommands {
		check("setup and warmCache", fmt.Errorf("have %d commands, at most %d are allowed", n, maxCommands))
	}
	for i, c := range r.Setup {
		check(fmt.Sprintf("setup[%d]", i), c.check())
	}
	for i, c := range r.WarmCache {
		check(fmt.Sprintf("warmCache[%d]", i), c.check())
	}
	if r.Start != nil {
		check("start", r.Start.check())
	}
	if r.Readiness != nil {
		check("readiness", r.Readiness.check())
	}
	check("timeout", checkTime(r.Timeout))
	if data, err := json.Marshal(r); err != nil || len(data) > maxTotalBytes {
		check("all of it", fmt.Errorf("has %d bytes, at most %d are allowed", len(data), maxTotalBytes))
	}
	return errors.Join(errs...)
}

// Digest is a SHA-256 over everything in the recipe, 64 hex digits: equal recipes have
// equal digests, in any process. Pure.
func (r Recipe) Digest() string {
	data, err := json.Marshal(r)
	if err != nil { // strings and numbers only: cannot happen
		panic(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Empty tells whether nothing is done in the machine: only images are in it.
func (r Recipe) Empty() bool {
	return r.Checkout == nil && len(r.Setup) == 0 && len(r.WarmCache) == 0 && r.Start == nil && r.Readiness == nil
}

// Limit is how long all of it may take.
func (r Recipe) Limit() time.Duration {
	if r.Timeout == 0 {
		return DefaultTimeout
	}
	return r.Timeout
}

func (c Command) check() error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return errors.New("has no program")
	}
	if len(c.Args) > maxArgs {
		return fmt.Errorf("has %d arguments, at most %d are allowed", len(c.Args), maxArgs)
	}
	for i, a := range c.Args {
		if len(a) > maxArgBytes {
			return fmt.Errorf("argument %d has %d bytes, at most %d are allowed", i, len(a), maxArgBytes)
		}
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("argument %d contains a zero byte", i)
		}
	}
	if err := checkDir(c.WorkingDir, true); err != nil {
		return fmt.Errorf("working directory %w", err)
	}
	return nil
}

func (p Readiness) check() error {
	kinds := 0
	if p.Exec != nil {
		kinds++
		if err := p.Exec.check(); err != nil {
			return fmt.Errorf("exec %w", err)
		}
	}
	if p.HTTP != nil {
		kinds++
		if err := checkPort(p.HTTP.Port); err != nil {
			return err
		}
		target, err := url.ParseRequestURI(p.HTTP.path())
		if err != nil || !strings.HasPrefix(p.HTTP.path(), "/") || target.Host != "" || len(p.HTTP.Path) > maxURLBytes || hasControl(p.HTTP.Path) {
			return fmt.Errorf("path %.100q is not one that begins with a slash", p.HTTP.Path)
		}
	}
	if p.TCP != nil {
		kinds++
		if err := checkPort(p.TCP.Port); err != nil {
			return err
		}
	}
	if kinds != 1 {
		return fmt.Errorf("has %d of exec, http and tcp, want one", kinds)
	}
	if err := checkTime(p.Timeout); err != nil {
		return fmt.Errorf("timeout %w", err)
	}
	if err := checkTime(p.Period); err != nil {
		return fmt.Errorf("period %w", err)
	}
	return nil
}

func (h HTTP) path() string {
	if h.Path == "" {
		return "/"
	}
	return h.Path
}

func checkPort(port int) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port %d is not from 1 to 65535", port)
	}
	return nil
}

func checkTime(d time.Duration) error {
	if d < 0 || d > MaxTimeout {
		return fmt.Errorf("%s is not from 0 to %s", d, MaxTimeout)
	}
	return nil
}

func checkEnv(e string) error {
	name, _, ok := strings.Cut(e, "=")
	switch {
	case !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return errors.New("is not NAME=value")
	case len(e) > maxArgBytes:
		return fmt.Errorf("has %d bytes, at most %d are allowed", len(e), maxArgBytes)
	case strings.ContainsRune(e, 0):
		return errors.New("contains a zero byte")
	}
	return nil
}

// checkDir allows an absolute, clean directory below the root; empty only when optional,
// and then the root as well.
func checkDir(dir string, optional bool) error {
	switch {
	case dir == "" && optional:
		return nil
	case !path.IsAbs(dir) || path.Clean(dir) != dir:
		return fmt.Errorf("%.100q is not an absolute path without \".\", \"..\" and double slashes", dir)
	case dir == "/" && !optional:
		return errors.New("is the root: want a directory that the checkout may make")
	case len(dir) > maxPathBytes:
		return fmt.Errorf("has %d bytes, at most %d are allowed", len(dir), maxPathBytes)
	case hasControl(dir):
		return errors.New("contains control characters")
	}
	return nil
}

// checkRepository allows what git takes for a URL and for nothing else.
func checkRepository(repository string) error {
	if len(repository) > maxURLBytes {
		return fmt.Errorf("has %d bytes, at most %d are allowed", len(repository), maxURLBytes)
	}
	if strings.ContainsFunc(repository, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errors.New("contains white space, control or other characters that a URL has in percents only")
	}
	u, err := url.Parse(repository)
	switch {
	case err != nil, u.Opaque != "":
		return errors.New("is not a URL, for example https://git.example.com/project.git")
	case !slices.Contains(schemes, u.Scheme):
		return fmt.Errorf("has scheme %.32q, want one of %s", u.Scheme, strings.Join(schemes, ", "))
	case u.Host == "" && u.Scheme != "file", u.Host != "" && u.Scheme == "file":
		return fmt.Errorf("has host %.64q, which does not go with %s", u.Host, u.Scheme)
	case strings.HasPrefix(u.Host, "-"), strings.HasPrefix(u.User.Username(), "-"), strings.HasPrefix(u.Path, "/-"):
		return errors.New("has a part that begins with a dash: git or ssh could take it for an option")
	case u.Path == "" || u.Path == "/":
		return errors.New("has no path")
	}
	return nil
}

// checkRef allows what git check-ref-format does, as far as a branch, a tag or a commit
// needs it, and no expressions.
func checkRef(ref string) error {
	bad := func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r)
	}
	switch {
	case ref == "" || len(ref) > maxRefBytes:
		return fmt.Errorf("has %d bytes, want 1 to %d", len(ref), maxRefBytes)
	case strings.HasPrefix(ref, "-"):
		return fmt.Errorf("%.100q begins with a dash: git would take it for an option", ref)
	case strings.ContainsFunc(ref, bad), strings.Contains(ref, ".."), strings.Contains(ref, "@{"), strings.Contains(ref, "//"),
		strings.HasPrefix(ref, "/"), strings.HasSuffix(ref, "/"), strings.HasSuffix(ref, "."), strings.HasSuffix(ref, ".lock"), ref == "@":
		return fmt.Errorf("%.100q is not the name of a branch, a tag or a commit", ref)
	}
	return nil
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }
