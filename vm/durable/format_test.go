// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

type note struct {
	durable.Header
	ID   string `json:"id"`
	Text string `json:"text,omitempty"`
}

func checkNote(n *note) error {
	if n.ID == "" {
		return errors.New("no id")
	}
	return nil
}

// notes are written in version 3. Version 1 is not read any more, version 2 had a name.
var notes = durable.NewFormat(durable.FormatOptions[note]{
	Kind: "note", Version: 3, MaxBytes: 200, Check: checkNote,
	Upgrades: map[int]func([]byte) ([]byte, error){2: func(old []byte) ([]byte, error) {
		var v2 struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(old, &v2); err != nil {
			return nil, err
		}
		return json.Marshal(note{ID: v2.Name})
	}},
})

// plain is a format that began without kinds and without versions.
var plain = durable.NewFormat(durable.FormatOptions[note]{Kind: "note", Version: 1, Unversioned: 1, MaxBytes: 200, Lenient: true, Check: checkNote})

func TestDecode(t *testing.T) {
	tests := map[string]struct {
		format *durable.Format[note]
		data   string
		want   string // the id
		err    error
		says   string
	}{
		"as it is written":     {notes, `{"kind":"note","version":3,"id":"a","text":"x"}`, "a", nil, ""},
		"older, migrated":      {notes, `{"kind":"note","version":2,"name":"b"}`, "b", nil, ""},
		"older, not migrated":  {notes, `{"kind":"note","version":1,"id":"a"}`, "", durable.ErrOlder, "written by an older vk-firkin (version 1 of a note record, this one reads from 2)"},
		"newer":                {notes, `{"kind":"note","version":4,"id":["changed"],"more":{}}`, "", durable.ErrNewer, "written by a newer vk-firkin (version 4 of a note record, this one reads up to 3): start that one"},
		"newer without a kind": {notes, `{"version":4}`, "", durable.ErrNewer, ""},
		"older and damaged":    {notes, `{"kind":"note","version":2,"name":7}`, "", durable.ErrCorrupt, "bring version 2 to 3"},
		"of another kind":      {notes, `{"kind":"lease","version":3,"id":"a"}`, "", durable.ErrCorrupt, `kind "lease", want "note"`},
		"newer, another kind":  {notes, `{"kind":"lease","version":9}`, "", durable.ErrCorrupt, ""},
		"without a kind":       {notes, `{"version":3,"id":"a"}`, "", durable.ErrCorrupt, "does not say its kind"},
		"without a version":    {notes, `{"kind":"note","id":"a"}`, "", durable.ErrCorrupt, "version 0"},
		"negative version":     {notes, `{"kind":"note","version":-1}`, "", durable.ErrCorrupt, "version -1"},
		"fractional version":   {notes, `{"kind":"note","version":2.5}`, "", durable.ErrCorrupt, ""},
		"huge version":         {notes, `{"kind":"note","version":1e99}`, "", durable.ErrCorrupt, ""},
		"unknown field":        {notes, `{"kind":"note","version":3,"id":"a","b":1}`, "", durable.ErrCorrupt, "unknown field"},
		"failed check":         {notes, `{"kind":"note","version":3}`, "", durable.ErrCorrupt, "no id"},
		"truncated":            {notes, `{"kind":"note","version":3,"id":"a`, "", durable.ErrCorrupt, ""},
		"empty":                {notes, ``, "", durable.ErrCorrupt, ""},
		"zeroes":               {notes, strings.Repeat("\x00", 64), "", durable.ErrCorrupt, ""},
		"two in one":           {notes, `{"kind":"note","version":3,"id":"a"}{"kind":"note"}`, "", durable.ErrCorrupt, ""},
		"null":                 {notes, `null`, "", durable.ErrCorrupt, ""},
		"array":                {notes, `[3]`, "", durable.ErrCorrupt, ""},
		"too long":             {notes, `{"kind":"note","version":3,"id":"` + strings.Repeat("a", 200) + `"}`, "", durable.ErrCorrupt, "more than 200"},
		"deep":                 {notes, strings.Repeat(`[`, 190), "", durable.ErrCorrupt, ""},

		"before kinds and versions": {plain, `{"id":"a"}`, "a", nil, ""},
		"before kinds":              {plain, `{"version":1,"id":"a"}`, "a", nil, ""},
		"lenient":                   {plain, `{"kind":"note","version":1,"id":"a","b":1}`, "a", nil, ""},
		"lenient, of another kind":  {plain, `{"kind":"lease","version":1,"id":"a"}`, "", durable.ErrCorrupt, ""},
		"lenient, newer":            {plain, `{"kind":"note","version":2,"id":"a"}`, "", durable.ErrNewer, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.format.Decode([]byte(test.data))
			if !errors.Is(err, test.err) || got.ID != test.want {
				t.Fatalf("got %+v, %v", got, err)
			}
			for _, other := range []error{durable.ErrCorrupt, durable.ErrNewer, durable.ErrOlder} {
				if err != nil && errors.Is(err, other) != errors.Is(other, test.err) {
					t.Errorf("%v is also %v", err, other)
				}
			}
			if err != nil && (!strings.Contains(err.Error(), test.says) || !durable.Unusable(err)) {
				t.Errorf("%v does not say %q, or is no unusable record", err, test.says)
			}
		})
	}
}

func TestEncode(t *testing.T) {
	data, err := notes.Encode(note{ID: "a", Header: durable.Header{Kind: "wrong", Version: 9}})
	if want := `{"kind":"note","version":3,"id":"a"}`; err != nil || string(data) != want {
		t.Errorf("got %s, %v", data, err)
	}
	if got, err := notes.Decode(data); err != nil || got != (note{durable.Header{Kind: "note", Version: 3}, "a", ""}) {
		t.Errorf("read back %+v, %v", got, err)
	}
	// What could not be read back is not written.
	for _, n := range []note{{}, {ID: strings.Repeat("a", 300)}} {
		if data, err := notes.Encode(n); err == nil {
			t.Errorf("wrote %s", data)
		}
	}
	indented := durable.NewFormat(durable.FormatOptions[note]{Kind: "note", Version: 1, Indent: true})
	data, err = indented.Encode(note{ID: "a"})
	if want := "{\n  \"kind\": \"note\",\n  \"version\": 1,\n  \"id\": \"a\"\n}\n"; err != nil || string(data) != want {
		t.Errorf("got %s, %v", data, err)
	}
}

// TestTruncated: no beginning of a record is one.
func TestTruncated(t *testing.T) {
	data, err := notes.Encode(note{ID: "a", Text: "}"})
	must(t, err)
	for n := range data {
		if got, err := notes.Decode(data[:n]); !errors.Is(err, durable.ErrCorrupt) {
			t.Errorf("%s: read %+v, %v", data[:n], got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"kind":"note","version":3,"id":"a"}`, `{"version":2,"kind":"note","name":"x"}`, `{"VERSION":4}`, `{"kind":"note","version":3,"id":"a","ID":""}`, `nul`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := notes.Decode(data)
		if err != nil {
			if !durable.Unusable(err) || got != (note{}) {
				t.Fatalf("%+v, %v", got, err)
			}
			return
		}
		// What was read can be written, if it is not longer that way, and is the same again.
		again, err := notes.Encode(got)
		if err != nil {
			if len(data) < 100 {
				t.Fatal(err)
			}
			return
		}
		if twice, err := notes.Decode(again); err != nil || twice != got {
			t.Fatalf("%s became %+v, then %+v, %v", data, got, twice, err)
		}
	})
}
