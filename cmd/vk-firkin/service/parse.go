// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"html"
	"regexp"
	"strings"
)

// What finds the parts of a definition that Render made.
var (
	systemdCommand = regexp.MustCompile(`(?m)^ExecStart=((?:.*\\\n)*.*)$`)
	systemdWord    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[^\s\\"](?:[^\s\\]|\\[^\n])*`)
	systemdSetting = regexp.MustCompile(`(?m)^Environment=(.*)$`)
	launchdCommand = regexp.MustCompile(`(?s)<key>ProgramArguments</key>\s*<array>(.*?)</array>`)
	launchdWord    = regexp.MustCompile(`<string>([^<]*)</string>`)
	launchdEnv     = regexp.MustCompile(`(?s)<key>EnvironmentVariables</key>\s*<dict>(.*?)</dict>`)
	launchdSetting = regexp.MustCompile(`<key>([^<]*)</key><string>([^<]*)</string>`)
)

// ErrForeign is the error for a definition that Render did not make.
var ErrForeign = errors.New("not written by vk-firkin install")

// Parse is what a service runs by its definition, as far as Render got it from a Spec:
// program, arguments and environment. Errors: ErrForeign.
func Parse(m Manager, definition []byte) (Spec, error) {
	var s Spec
	var words []string
	env := map[string]string{}
	text := string(definition)
	if m == Launchd {
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
	if len(env) > 0 {
		s.Env = env
	}
	return s, nil
}

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
