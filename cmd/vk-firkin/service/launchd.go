// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// launchdPlist renders the property list, see launchd.plist(5).
func launchdPlist(t Target, s Spec) []byte {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	list := func(name string, values []string) {
		line("\t<key>%s</key>\n\t<array>", name)
		for _, v := range values {
			line("\t\t<string>%s</string>", xmlText(v))
		}
		line("\t</array>")
	}

	line(`<?xml version="1.0" encoding="UTF-8"?>`)
	line(`<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">`)
	line("<!-- Written by vk-firkin install, and again by the next one. -->")
	line(`<plist version="1.0">`)
	line("<dict>")
	line("\t<key>Label</key><string>%s</string>", launchdLabel)
	list("ProgramArguments", append([]string{s.Program}, s.Args...))
	if len(s.Env) > 0 {
		line("\t<key>EnvironmentVariables</key>\n\t<dict>")
		for _, name := range slices.Sorted(maps.Keys(s.Env)) {
			line("\t\t<key>%s</key><string>%s</string>", xmlText(name), xmlText(s.Env[name]))
		}
		line("\t</dict>")
	}
	if t.System {
		line("\t<key>UserName</key><string>%s</string>", xmlText(t.User))
	} else {
		line("\t<!-- Saved machines are encrypted with a key that macOS gives to a graphical session only. -->")
		line("\t<key>LimitLoadToSessionType</key><string>Aqua</string>")
	}
	line("\t<key>RunAtLoad</key><true/>")
	line("\t<key>KeepAlive</key><true/>")
	line("\t<!-- Machines outlive the node's process, and the next one takes them up. -->")
	line("\t<key>AbandonProcessGroup</key><true/>")
	line("\t<key>ExitTimeOut</key><integer>%d</integer>", seconds(s.StopTimeout))
	line("\t<!-- Without it processor and disk are throttled, for machines too. -->")
	line("\t<key>ProcessType</key><string>Interactive</string>")
	line("\t<key>Umask</key><integer>%d</integer>", 0o077)
	for _, limit := range []string{"SoftResourceLimits", "HardResourceLimits"} {
		line("\t<key>%s</key>\n\t<dict>\n\t\t<key>Core</key><integer>0</integer>\n\t\t<key>NumberOfFiles</key><integer>65536</integer>\n\t</dict>", limit)
	}
	if s.Stderr != "" {
		line("\t<!-- What a crash says; the log is where the node's log-file flag says, and is rotated. -->")
		line("\t<key>StandardErrorPath</key><string>%s</string>", xmlText(s.Stderr))
	}
	line("</dict>\n</plist>")
	return []byte(b.String())
}

func xmlText(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a builder does not fail
	return b.String()
}
