// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"reflect"
	"strings"
	"testing"
)

func TestPlist(t *testing.T) {
	got, err := decodePlist(plist(`<!-- note --><dict><key>a&lt;b</key><array><integer> 0x10 </integer><string>x &amp; y</string><true/><false></false><date>2026-01-01T00:00:00Z</date></array><key/><dict/></dict>`))
	want := map[string]any{"a<b": []any{int64(16), "x & y", true, false, nil}, "": map[string]any{}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %#v, %v, want %#v", got, err, want)
	}
}

func TestPlistRefuses(t *testing.T) {
	deep := strings.Repeat("<array>", maxPlistDepth+1) + strings.Repeat("</array>", maxPlistDepth+1)
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"binary":            []byte("bplist00\xd1\x01\x02"),
		"another document":  []byte("<html/>"),
		"no value":          plist(""),
		"two values":        plist("<true/><true/>"),
		"a text":            plist("hello"),
		"a key alone":       plist("<key>x</key>"),
		"a value alone":     plist("<dict><true/></dict>"),
		"a key twice":       plist("<dict><key>x</key><true/><key>x</key><false/></dict>"),
		"a key at the end":  plist("<dict><key>x</key></dict>"),
		"two keys":          plist("<dict><key>x</key><key>y</key></dict>"),
		"text in a dict":    plist("<dict>x<key>x</key><true/></dict>"),
		"a full true":       plist("<true>no</true>"),
		"a tag in a string": plist("<string><b/></string>"),
		"no number":         plist("<integer>seven</integer>"),
		"an own entity":     []byte(`<!DOCTYPE plist [<!ENTITY a "aaaa">]><plist><string>&a;</string></plist>`),
		"too deep":          plist(deep),
		"too many":          plist("<array>" + strings.Repeat("<true/>", maxPlistValues) + "</array>"),
		"too long":          plist("<string>" + strings.Repeat("x", maxPlistBytes) + "</string>"),
		"open":              []byte("<plist><dict>"),
		"badly closed":      []byte("<plist><dict></plist>"),
	} {
		if v, err := decodePlist(b); err == nil {
			t.Errorf("%s: got %v, want an error", name, v)
		}
	}
}

func FuzzPlist(f *testing.F) {
	for _, name := range []string{"root-locked.plist", "platform.plist", "entitlements.plist"} {
		f.Add(golden(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodePlist(b)
		if err != nil && v != nil {
			t.Errorf("a value with error %v", err)
		}
		_, _ = parseScreen(b, 501)
		if uuid, err := parseHardwareUUID(b); err == nil && !uuidPattern.MatchString(uuid) {
			t.Errorf("UUID %q", uuid)
		}
		if s, err := parseSignature(Result{Stdout: b}, Result{}); err != nil && s.Virtualization {
			t.Errorf("entitled with error %v", err)
		}
	})
}

func FuzzText(f *testing.F) {
	for _, name := range []string{"pmset-desktop.txt", "pmset-laptop.txt", "ps.txt"} {
		f.Add(golden(f, name), 0)
	}
	f.Add([]byte("Keychain \"x\" lock-on-sleep timeout=300s\n"), 0)
	f.Add([]byte("screenLock delay is -1.0 seconds\n"), 1)
	f.Fuzz(func(t *testing.T, b []byte, exit int) {
		r := Result{Stdout: b, Stderr: b, Exit: exit}
		if s, err := parseSleep(b); err == nil && len(s) == 0 {
			t.Error("no sleep settings and no error")
		}
		for _, p := range parseGuests(b) {
			if p.PID > 1<<31 || p.Parent > 1<<31 {
				t.Errorf("process %+v", p)
			}
		}
		if k, err := parseKeychain(r); k.Unlocked && (err != nil || exit != 0) || k.LockAfter < 0 {
			t.Errorf("%+v, %v with exit code %d", k, err, exit)
		}
		if l, err := parseScreenLock(r); l.Delay < 0 || err != nil && l != (ScreenLock{}) {
			t.Errorf("%+v, %v", l, err)
		}
		if d, err := parseScreenSaver(r); d < 0 || err != nil && d != 0 {
			t.Errorf("%v, %v", d, err)
		}
		if v, err := ParseVersion(string(b)); err == nil && !v.AtLeast(v...) {
			t.Errorf("%v", v)
		}
		if said := r.said(); len(said) > maxSaid+3+len(b) || said == "" {
			t.Errorf("said %q", said)
		}
	})
}
