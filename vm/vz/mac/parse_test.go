// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func plist(body string) []byte {
	return []byte(`<?xml version="1.0"?><plist version="1.0">` + body + `</plist>`)
}

func session(uid, keys string) string {
	return "<dict><key>kCGSSessionUserIDKey</key><integer>" + uid + "</integer>" + keys + "</dict>"
}

func TestScreen(t *testing.T) {
	const on = "<key>kCGSSessionOnConsoleKey</key><true/><key>kCGSSessionUserNameKey</key><string>eve</string>"
	const locked = "<key>CGSSessionScreenIsLocked</key><true/>"
	users := func(sessions ...string) []byte {
		return plist("<dict><key>IOConsoleUsers</key><array>" + strings.Join(sessions, "") + "</array></dict>")
	}
	for name, c := range map[string]struct {
		plist []byte
		want  Screen
	}{
		"unlocked":                            {golden(t, "root-unlocked.plist"), Screen{OnConsole: true, ConsoleUser: "ci"}},
		"locked":                              {golden(t, "root-locked.plist"), Screen{Locked: true, OnConsole: true, ConsoleUser: "ci"}},
		"login window":                        {users(), Screen{}},
		"login window without the key":        {plist("<dict><key>IOConsoleLocked</key><true/></dict>"), Screen{}},
		"somebody else's locked screen":       {users(session("502", on+locked)), Screen{Locked: true, ConsoleUser: "eve"}},
		"ours is behind, theirs is locked":    {users(session("501", ""), session("502", on+locked)), Screen{ConsoleUser: "eve"}},
		"ours is behind and locked":           {users(session("501", locked), session("502", on)), Screen{Locked: true, ConsoleUser: "eve"}},
		"the key is there and says not":       {users(session("501", on+"<key>CGSSessionScreenIsLocked</key><false/>")), Screen{OnConsole: true, ConsoleUser: "eve"}},
		"two sessions behind, none is ours":   {users(session("502", locked), session("503", locked)), Screen{}},
		"an identifier that is no number":     {users("<dict><key>kCGSSessionUserIDKey</key><string>501</string>" + locked + "</dict>"), Screen{}},
		"a name that is no text, and a wrong": {users(session("501", "<key>kCGSSessionOnConsoleKey</key><true/><key>kCGSSessionUserNameKey</key><integer>7</integer>")), Screen{OnConsole: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseScreen(c.plist, 501)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"another dictionary":  plist("<dict/>"),
		"an array":            plist("<array/>"),
		"an entry of texts":   plist("<dict><key>IOConsoleUsers</key><array><string>x</string></array></dict>"),
		"cut off":             golden(t, "root-locked.plist")[:700],
		"text, no list":       []byte("ioreg: error: can't find root\n"),
		"a key without value": plist("<dict><key>IOConsoleUsers</key></dict>"),
	} {
		if got, err := parseScreen(b, 501); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestHardwareUUID(t *testing.T) {
	if got, err := parseHardwareUUID(golden(t, "platform.plist")); err != nil || got != "12345678-1234-5678-9ABC-DEF012345678" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, b := range [][]byte{nil, plist("<array/>"), plist("<dict/>"), plist("<array><dict><key>IOPlatformUUID</key><string>../../etc</string></dict></array>")} {
		if got, err := parseHardwareUUID(b); err == nil {
			t.Errorf("%s: got %q, want an error", b, got)
		}
	}
}

func TestGUISession(t *testing.T) {
	for _, c := range []struct {
		exit    int
		want    bool
		wantErr bool
	}{{0, true, false}, {125, false, false}, {112, false, false}, {1, false, true}, {64, false, true}} {
		got, err := parseGUISession(Result{Exit: c.exit, Stderr: []byte("Could not print domain: 125: Domain does not support specified action\n")})
		if got != c.want || (err != nil) != c.wantErr {
			t.Errorf("exit code %d: got %v, %v", c.exit, got, err)
		}
	}
}

func TestKeychain(t *testing.T) {
	for _, c := range []struct {
		exit int
		says string
		want Keychain
	}{
		{0, "Keychain \"/Users/ci/Library/Keychains/login.keychain-db\" no-timeout\n", Keychain{Unlocked: true}},
		{0, "Keychain \"/Users/ci/login.keychain-db\" lock-on-sleep timeout=300s\n", Keychain{Unlocked: true, LockAfter: 5 * time.Minute, LockOnSleep: true}},
		{0, "Keychain \"/Users/c i/timeout=9s lock-on-sleep/login.keychain-db\" no-timeout\n", Keychain{Unlocked: true}},
		{0, "a warning\nKeychain \"/x\" timeout=7s\n", Keychain{Unlocked: true, LockAfter: 7 * time.Second}},
		{0, "", Keychain{Unlocked: true}},
		{36, "security: SecKeychainCopySettings /Users/ci/Library/Keychains/login.keychain-db: User interaction is not allowed.\n", Keychain{}},
		{1, "security: SecKeychainCopySettings: User interaction is not allowed.\n", Keychain{}},
		{128, "security: SecKeychainCopySettings: User canceled the operation.\n", Keychain{}},
		{50, "security: SecKeychainCopySettings: The specified keychain could not be found.\n", Keychain{Missing: true}},
	} {
		got, err := parseKeychain(Result{Exit: c.exit, Stderr: []byte(c.says)})
		if err != nil || got != c.want {
			t.Errorf("%d %q: got %+v, %v, want %+v", c.exit, c.says, got, err, c.want)
		}
	}
	if got, err := parseKeychain(Result{Exit: 2, Stderr: []byte("usage")}); err == nil {
		t.Errorf("got %+v, want an error", got)
	}
}

func TestSleep(t *testing.T) {
	for name, want := range map[string]map[string]Sleep{
		"pmset-desktop.txt": {"AC Power": {}},
		"pmset-laptop.txt":  {"Battery Power": {System: 1, Display: 2, Disk: 10, PowerNap: true}, "AC Power": {Display: 10, PowerNap: true}},
	} {
		got, err := parseSleep(golden(t, name))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
	for _, s := range []string{"", "pmset: error\n", "AC Power:\n", " sleep 1\n", "AC Power:\nCurrently in use:\n sleep 1\n"} {
		if got, err := parseSleep([]byte(s)); err == nil {
			t.Errorf("%q: got %+v, want an error", s, got)
		}
	}
}

func TestScreenLock(t *testing.T) {
	const log = "2026-09-21 20:51:30.063 sysadminctl[22795:23833089] "
	for says, want := range map[string]ScreenLock{
		log + "screenLock is off\n":                          {Off: true},
		log + "screenLock delay is -1.000000 seconds\n":      {Off: true},
		log + "screenLock delay is -1 seconds\n":             {Off: true},
		log + "screenLock delay is immediate\n":              {},
		log + "screenLock delay is 300 seconds\n":            {Delay: 5 * time.Minute},
		log + "screenLock delay is 5.000000 seconds\nmore\n": {Delay: 5 * time.Second},
	} {
		if got, err := parseScreenLock(Result{Stderr: []byte(says)}); err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", says, got, err, want)
		}
	}
	for _, says := range []string{"", "screenLock\n", "screenLock delay is soon\n"} {
		if got, err := parseScreenLock(Result{Stderr: []byte(says)}); err == nil {
			t.Errorf("%q: got %+v, want an error", says, got)
		}
	}
}

func TestScreenSaver(t *testing.T) {
	for _, c := range []struct {
		r    Result
		want time.Duration
	}{
		{Result{Stdout: []byte("0\n")}, 0},
		{Result{Stdout: []byte("1200\n")}, 20 * time.Minute},
		{Result{Exit: 1, Stderr: []byte("The domain/default pair of (com.apple.screensaver, idleTime) does not exist\n")}, defaultIdle},
	} {
		if got, err := parseScreenSaver(c.r); err != nil || got != c.want {
			t.Errorf("%+v: got %v, %v", c.r, got, err)
		}
	}
	for _, r := range []Result{{}, {Stdout: []byte("-1")}, {Stdout: []byte("99999999999999")}, {Exit: 1}} {
		if got, err := parseScreenSaver(r); err == nil {
			t.Errorf("%+v: got %v, want an error", r, got)
		}
	}
}

func TestSignature(t *testing.T) {
	shown := func(s []byte) Result {
		return Result{Stdout: s, Stderr: []byte("Executable=/usr/local/bin/vk-firkin\n")}
	}
	unsigned := Result{Exit: 1, Stderr: []byte("/usr/local/bin/vk-firkin: code object is not signed at all\n")}
	for name, c := range map[string]struct {
		shown, verified Result
		want            Signature
		wantErr         bool
	}{
		"entitled":            {shown(golden(t, "entitlements.plist")), Result{}, Signature{Valid: true, Virtualization: true}, false},
		"signed by the build": {shown(nil), Result{}, Signature{Valid: true}, false},
		"other entitlements":  {shown(plist("<dict><key>com.apple.security.network.client</key><true/></dict>")), Result{}, Signature{Valid: true}, false},
		"refused to itself":   {shown(plist("<dict><key>" + Entitlement + "</key><false/></dict>")), Result{}, Signature{Valid: true}, false},
		"a text instead":      {shown(plist("<dict><key>" + Entitlement + "</key><string>true</string></dict>")), Result{}, Signature{Valid: true}, false},
		"unsigned":            {unsigned, unsigned, Signature{Problem: "/usr/local/bin/vk-firkin: code object is not signed at all"}, false},
		"changed":             {shown(golden(t, "entitlements.plist")), Result{Exit: 1, Stderr: []byte("x: invalid signature (code or signature have been modified)\n")}, Signature{Problem: "x: invalid signature (code or signature have been modified)"}, false},
		"usage":               {shown(nil), Result{Exit: 2}, Signature{}, true},
		"damaged":             {shown([]byte("<plist>")), Result{}, Signature{Valid: true}, true},
		"an array":            {shown(plist("<array/>")), Result{}, Signature{Valid: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseSignature(c.shown, c.verified)
			if got != c.want || (err != nil) != c.wantErr {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestGuests(t *testing.T) {
	want := []Process{{41311, 1}, {52000, 1}}
	if got := parseGuests(golden(t, "ps.txt")); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, s := range []string{"", "1 2\n", "x 1 /" + guestProcess + "\n", "1 x /" + guestProcess + "\n", "99999999999 1 /" + guestProcess + "\n", "7 1 /tmp/not-" + guestProcess + "\n"} {
		if got := parseGuests([]byte(s)); len(got) != 0 {
			t.Errorf("%q: got %v", s, got)
		}
	}
}

func TestVersion(t *testing.T) {
	ascending := []string{"10.16", "13.6.1", "14", "14.5", "14.10", "15.1", "15.9", "15.10", "15.10.1", "26.0"}
	for i, a := range ascending {
		for j, b := range ascending {
			v, err := ParseVersion(a)
			if err != nil {
				t.Fatal(err)
			}
			w, err := ParseVersion(b)
			if err != nil {
				t.Fatal(err)
			}
			if c := v.Compare(w); (c < 0) != (i < j) || (c > 0) != (i > j) {
				t.Errorf("%s against %s: %d", a, b, c)
			}
		}
	}
	v, err := ParseVersion(" 14.0.0 (a)\n")
	if err != nil || v.Compare(Version{14}) != 0 || !v.AtLeast(14) || v.AtLeast(14, 0, 1) {
		t.Errorf("got %v, %v", v, err)
	}
	for _, s := range []string{"", ".", "14.", "-1", "+14", "1e3", "14.5-beta", "1.2.3.4.5", "99999"} {
		if v, err := ParseVersion(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, v)
		}
	}
}
