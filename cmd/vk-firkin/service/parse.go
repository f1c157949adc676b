// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"html"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// What finds the parts of a definition that Render made.
var (
	systemdCommand = regexp.MustCompile(`(?m)^ExecStart=((?:.*\\\n)*.*)$`)
	systemdWord    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[^\s\\"](?:[^\s\\]|\\[^\n])*`)
	systemdSetting = regexp.MustCompile(`(?m)^Environment=(.*)$`) // of earlier versions
	systemdStop    = regexp.MustCompile(`(?m)^TimeoutStopSec=(\d{1,6})$`)
	systemdFile    = regexp.MustCompile(`(?m)^([^#=\s"]+)="((?:[^"\\]|\\.)*)"$`)
	systemdEscape  = regexp.MustCompile(`\\(.)`)
	launchdCommand = regexp.MustCompile(`(?s)<key>ProgramArguments</key>\s*<array>(.*?)</array>`)
	launchdWord    = regexp.MustCompile(`<string>([^<]*)</string>`)
	launchdEnv     = regexp.MustCompile(`(?s)<key>EnvironmentVariables</key>\s*<dict>(.*?)</dict>`)
	launchdStop    = regexp.MustCompile(`<key>ExitTimeOut</key><integer>(\d{1,6})</integer>`)
	launchdSetting = regexp.MustCompile(`<key>([^<]*)</key><string>([^<]*)</string>`)
)

// ErrForeign is the error for a definition that Render did not make.
var ErrForeign = errors.New("not written by vk-firkin install")

// Parse is what a service runs by its definition, as far as Render got it from a Spec:
// program, arguments, environment and the time to stop. Errors: ErrForeign.
func Parse(m Manager, definition []byte) (Spec, error) {
	var s Spec
	var words []string
	env := map[string]string{}
	text := string(definition)
	stop := systemdStop
	if m == Launchd {
		stop = launchdStop
		if match := launchdCommand.FindStringSubmatch(text); match != nil {
			for _, w := range launchdWord.FindAllStringSubmatch(match[1], -1) {
				words = append(words, html.UnescapeString(w[1]))
			}
		}
		if match := launchdEnv.FindStringSubmatch(text); match != nil {
			for _, w := range launchdSetting.FindAllStringSubmatch(match[1], -1) {
				env[html.UnescapeString(w[1])] = html.UnescapeString(w[2])
			}
		}
	} else {
		if match := systemdCommand.FindStringSubmatch(text); match != nil {
			for _, w := range systemdWord.FindAllString(match[1], -1) {
				words = append(words, strings.ReplaceAll(systemdUnquote(w), "$$", "$"))
			}
		}
		for _, w := range systemdSetting.FindAllStringSubmatch(text, -1) {
			name, value, _ := strings.Cut(systemdUnquote(w[1]), "=")
			env[name] = value
		}
	}
	if len(words) < 2 {
		return s, ErrForeign
	}
	s.Program, s.Args = words[0], words[1:]
	if match := stop.FindStringSubmatch(text); match != nil {
		n, _ := strconv.Atoi(match[1]) // six digits
		s.StopTimeout = time.Duration(n) * time.Second
	}
	if len(env) > 0 {
		s.Env = env
	}
	return s, nil
}

// Read is what the service of a target runs, by its files. Errors: ErrForeign, fs.ErrNotExist.
func Read(t Target) (Spec, error) {
	definition, err := durable.ReadFile(durable.Host, t.Path(), maxDefinition)
	if err != nil {
		return Spec{}, err
	}
	s, err := Parse(t.Manager, definition)
	if err != nil {
		return s, fmt.Errorf("%s: %w: move it away, then install again", t.Path(), err)
	}
	if t.Manager != Systemd {
		return s, nil
	}
	env, err := durable.ReadFile(durable.Host, t.environmentPath(), maxDefinition)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) { // who may not read it only looks
		return s, nil
	}
	if err != nil {
		return s, err
	}
	for _, w := range systemdFile.FindAllStringSubmatch(string(env), -1) {
		if s.Env == nil {
			s.Env = map[string]string{}
		}
		s.Env[w[1]] = systemdEscape.ReplaceAllString(w[2], "$1")
	}
	return s, nil
}

// maxDefinition bounds what is read of a service's files.
const maxDefinition = 1 << 20

// Argument is the value of a flag among arguments of the form --name=value; empty when it
// is not there.
func (s Spec) Argument(flag string) string {
	for _, arg := range s.Args {
		if value, ok := strings.CutPrefix(arg, "--"+flag+"="); ok {
			return value
		}
	}
	return ""
}
