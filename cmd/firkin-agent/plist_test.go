// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// element is a node of a property list.
type element struct {
	XMLName  xml.Name
	Text     string    `xml:",chardata"`
	Children []element `xml:",any"`
}

// value gives an element as Go's own types, as plutil(1) would read it.
func (e element) value() (any, error) {
	text := strings.TrimSpace(e.Text)
	switch e.XMLName.Local {
	case "string":
		return text, nil
	case "integer":
		var n int
		_, err := fmt.Sscan(text, &n)
		return n, err
	case "true", "false":
		return e.XMLName.Local == "true", nil
	case "array":
		var out []any
		for _, c := range e.Children {
			v, err := c.value()
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case "dict":
		out := map[string]any{}
		if len(e.Children)%2 != 0 {
			return nil, errors.New("a dictionary with a key and no value")
		}
		for i := 0; i < len(e.Children); i += 2 {
			key := strings.TrimSpace(e.Children[i].Text)
			if _, twice := out[key]; e.Children[i].XMLName.Local != "key" || key == "" || twice {
				return nil, fmt.Errorf("element %d of a dictionary is no key, or is there twice", i)
			}
			v, err := e.Children[i+1].value()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			out[key] = v
		}
		return out, nil
	}
	return nil, fmt.Errorf("element %q", e.XMLName.Local)
}

func readPlist(r io.Reader) (map[string]any, error) {
	var root struct {
		XMLName  xml.Name  `xml:"plist"`
		Version  string    `xml:"version,attr"`
		Children []element `xml:",any"`
	}
	if err := xml.NewDecoder(r).Decode(&root); err != nil {
		return nil, err
	}
	if root.Version != "1.0" || len(root.Children) != 1 {
		return nil, fmt.Errorf("version %q with %d elements", root.Version, len(root.Children))
	}
	v, err := root.Children[0].value()
	if err != nil {
		return nil, err
	}
	dict, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("no dictionary")
	}
	return dict, nil
}

const plistFile = "../../hack/guest-macos/dev.firkin.agent.plist"

// TestPropertyList: launchd would read the file, and the page for operators speaks of the
// same paths.
func TestPropertyList(t *testing.T) {
	f, err := os.Open(plistFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := readPlist(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]any{"NumberOfFiles": 65536}
	want := map[string]any{
		"Label": "dev.firkin.agent", "ProgramArguments": []any{"/usr/local/libexec/firkin-agent"}, "UserName": "root",
		"RunAtLoad": true, "KeepAlive": true, "ThrottleInterval": 1, "ProcessType": "Interactive",
		"SoftResourceLimits": files, "HardResourceLimits": files, "StandardErrorPath": "/var/log/firkin-agent.log",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("property list %v\nwant %v", got, want)
	}
	if name := strings.TrimSuffix(filepath.Base(plistFile), ".plist"); got["Label"] != name {
		t.Errorf("the file is called %s and its label is %v: launchd wants them alike", name, got["Label"])
	}
	page, err := os.ReadFile("../../docs/macos-guests.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/usr/local/libexec/firkin-agent", "/Library/LaunchDaemons/dev.firkin.agent.plist", "/var/log/firkin-agent.log", "hack/guest-macos/dev.firkin.agent.plist"} {
		if !strings.Contains(string(page), path) {
			t.Errorf("docs/macos-guests.md does not name %s", path)
		}
	}
}

func TestPropertyListFaults(t *testing.T) {
	for _, bad := range []string{
		``, `<plist version="1.0"></plist>`, `<plist version="1.0"><array/></plist>`, `<plist version="2"><dict/></plist>`,
		`<plist version="1.0"><dict><key>a</key></dict></plist>`, `<plist version="1.0"><dict><string>a</string><true/></dict></plist>`,
		`<plist version="1.0"><dict><key>a</key><true/><key>a</key><true/></dict></plist>`, `<plist version="1.0"><dict><key>a</key><yes/></dict></plist>`,
	} {
		if got, err := readPlist(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}
