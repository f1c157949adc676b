// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// systemdUnit renders the unit, see systemd.service(5), systemd.kill(5), systemd.exec(5).
func systemdUnit(t Target, s Spec) []byte {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	line("# Written by vk-firkin install, and again by the next one. Changes of your own go to a")
	line("# drop-in, which stays: systemctl%s edit vk-firkin", userFlag(t))
	line("[Unit]")
	line("Description=vk-firkin node: pods in machines restored from snapshots")
	if t.System {
		line("Wants=network-online.target")
		line("After=network-online.target")
	}
	line("# A cluster that is away for a night must not end the node for good.")
	line("StartLimitIntervalSec=0")
	line("")
	line("[Service]")
	line("Type=exec")
	command := []string{systemdQuote(s.Program)}
	for _, arg := range s.Args {
		command = append(command, systemdQuote(arg))
	}
	line("ExecStart=%s", strings.Join(command, " \\\n  "))
	if t.System {
		line("User=%s", t.User)
	}
	if len(s.Env) > 0 {
		line("EnvironmentFile=%s", strings.ReplaceAll(t.environmentPath(), "%", "%%"))
	}
	line("# Machines are processes of this unit, and outlive the node's: the next one takes them")
	line("# up. So only the node's own process is ended, and a machine that the kernel ends for")
	line("# want of memory does not end the node.")
	line("KillMode=process")
	line("OOMPolicy=continue")
	line("TimeoutStopSec=%d", seconds(s.StopTimeout))
	line("Restart=always")
	line("RestartSec=2")
	line("# A machine has about a dozen open files and threads for its processors and its disks.")
	line("LimitNOFILE=65536")
	line("TasksMax=infinity")
	line("# Memory of machines holds secrets: it is dumped nowhere, and read by nobody else.")
	line("LimitCORE=0")
	line("UMask=0077")
	line("NoNewPrivileges=yes")
	line("")
	line("[Install]")
	if t.System {
		line("WantedBy=multi-user.target")
	} else {
		line("WantedBy=default.target")
	}
	return []byte(b.String())
}

func userFlag(t Target) string {
	if t.System {
		return ""
	}
	return " --user"
}

func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// systemdQuote makes a text one word of a command line: in double quotes, with specifiers
// and variables as what they are (systemd.service(5), "Command lines").
func systemdQuote(text string) string {
	return strings.ReplaceAll(systemdQuoteNoDollar(text), "$", "$$")
}

// systemdQuoteNoDollar is for settings without variables. A text that needs no quotes has none.
func systemdQuoteNoDollar(text string) string {
	escaped := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(text)
	if text != "" && !strings.ContainsAny(text, " '\"\\;#") {
		return escaped
	}
	return `"` + escaped + `"`
}

// systemdEnvironment is the file of an EnvironmentFile setting, see systemd.exec(5).
func systemdEnvironment(env map[string]string) []byte {
	var b strings.Builder
	fmt.Fprintln(&b, "# Written by vk-firkin install.")
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&b, "%s=\"%s\"\n", name, strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", "$", `\$`).Replace(env[name]))
	}
	return []byte(b.String())
}

// systemdUnquote undoes systemdQuoteNoDollar.
func systemdUnquote(word string) string {
	if len(word) > 1 && word[0] == '"' {
		word = word[1 : len(word)-1]
	}
	return strings.NewReplacer(`\\`, `\`, `\"`, `"`, "%%", "%").Replace(word)
}
