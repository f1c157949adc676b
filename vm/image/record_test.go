// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
)

func FuzzDecodeRecord(f *testing.F) {
	good, err := recordFormat.Encode(record{
		Digest: digestPrefix + strings.Repeat("a", 64), ConfigDigest: digestPrefix + strings.Repeat("b", 64), Architecture: "amd64",
		SlotBytes: testSlot, SizeBytes: 5, Created: time.Unix(1, 0).UTC(), Config: Config{Cmd: []string{"x"}, Env: []string{"A=b"}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"unknown":2}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := recordFormat.Decode(b)
		if err != nil {
			return
		}
		again, err := recordFormat.Encode(r)
		if err != nil {
			if len(b) < maxRecordBytes/8 { // escapes may lengthen it
				t.Fatal(err)
			}
			return
		}
		if r2, err := recordFormat.Decode(again); err != nil || !cmp.Equal(r, r2) {
			t.Errorf("%+v became %+v, %v", r, r2, err)
		}
	})
}

// TestImagesOfAnotherVersion: what a newer vk-firkin has pulled stays for it, what is
// damaged goes, and what was pulled before records said their kind is used.
func TestImagesOfAnotherVersion(t *testing.T) {
	dir := t.TempDir()
	good, err := recordFormat.Encode(record{
		Digest: digestPrefix + strings.Repeat("a", 64), ConfigDigest: digestPrefix + strings.Repeat("b", 64), Architecture: "amd64",
		SlotBytes: testSlot, SizeBytes: 5, Created: time.Unix(1, 0).UTC(),
	})
	if err != nil || !strings.HasPrefix(string(good), `{"kind":"image","version":1,`) {
		t.Fatalf("%s, %v", good, err)
	}
	for hex, content := range map[string]string{
		"a": strings.Replace(string(good), `"kind":"image",`, "", 1),
		"c": `{"kind":"image","version":2,"layout":"another"}`,
		"d": string(good[:40]),
		"e": `{"kind":"image-reference","version":1}`,
	} {
		path := filepath.Join(dir, strings.Repeat(hex, 64))
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, recordName), []byte(content), 0o600),
			os.WriteFile(filepath.Join(path, diskName), nil, 0o600), os.Truncate(filepath.Join(path, diskName), testSlot)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(dir, Options{SlotBytes: testSlot, Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(s.images) != 1 || s.images[digestPrefix+strings.Repeat("a", 64)] == nil {
		t.Errorf("images are %v", s.images)
	}
	for hex, want := range map[string]bool{"a": true, "c": true, "d": false, "e": false} {
		if _, err := os.Stat(filepath.Join(dir, strings.Repeat(hex, 64), recordName)); (err == nil) != want {
			t.Errorf("%s: %v", hex, err)
		}
	}
}

func FuzzDecodeRefRecord(f *testing.F) {
	good, err := refFormat.Encode(refRecord{Ref: "a/b:c", Architecture: "arm64", Target: digestPrefix + strings.Repeat("a", 64), Digest: digestPrefix + strings.Repeat("b", 64)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := refFormat.Decode(b); err == nil && (!validDigest(r.Digest) || !validDigest(r.Target) || r.Ref == "") {
			t.Errorf("accepted %+v", r)
		}
	})
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Env":["A=b"],"Cmd":["x"],"Volumes":{"/v":{}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, _, _, err := decodeConfig(b); err == nil && c.check() != nil {
			t.Errorf("accepted %+v", c)
		}
	})
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"a", "a/b:c", "h:1/a@sha256:" + strings.Repeat("0", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseReference(s, nil)
		if err != nil {
			return
		}
		again, err := parseReference(r.Name(), nil)
		if err != nil || again.Name() != r.Name() {
			t.Errorf("%q became %q, then %v, %v", s, r.Name(), again, err)
		}
		if strings.Contains(r.Context().RepositoryStr(), "..") {
			t.Errorf("%q gives the path %q", s, r.Context().RepositoryStr())
		}
	})
}

func TestKeychain(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	json1 := `{"auths":{
		"https://index.docker.io/v1/":{"username":"hub","password":"p"},
		"example.invalid":{"auth":"` + b64("host:p") + `"},
		"example.invalid/team":{"auth":"` + b64("team:p") + `"},
		"example.invalid:5000":{"auth":"` + b64("port:p") + `"},
		"*.wild.invalid":{"username":"wild","password":"p"}}}`
	json2 := `{"a.wild.invalid":{"username":"exact","password":"p"},"example.invalid":{"username":"second","password":"p"}}`
	k, err := KeychainFromSecrets(Secret{SecretTypeDockerConfigJSON, []byte(json1)}, Secret{SecretTypeDockercfg, []byte(json2)})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		image string
		want  []string
	}{
		{"busybox", []string{"hub"}},
		{"docker.io/a/b", []string{"hub"}},
		{"example.invalid/x", []string{"host", "second"}},
		{"example.invalid/team/x", []string{"team", "host", "second"}},
		{"example.invalid/teams/x", []string{"host", "second"}},
		{"example.invalid:5000/x", []string{"port"}},
		{"example.invalid:5001/x", nil},
		{"a.wild.invalid/x", []string{"exact", "wild"}},
		{"b.wild.invalid/x", []string{"wild"}},
		{"a.b.wild.invalid/x", nil},
		{"wild.invalid/x", nil},
	} {
		ref, err := name.ParseReference(tt.image)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range k.Candidates(ref.Context()) {
			got = append(got, a.Username)
			if a.Password != "p" {
				t.Errorf("%s: password %q", tt.image, a.Password)
			}
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: %s", tt.image, d)
		}
	}
	for _, s := range []Secret{
		{"Opaque", []byte("{}")}, {SecretTypeDockercfg, []byte("secret-word")}, {SecretTypeDockerConfigJSON, []byte(`{"auths":{"x":{"auth":"secret-word!"}}}`)},
		{SecretTypeDockercfg, make([]byte, maxSecretBytes+1)}, {SecretTypeDockercfg, []byte(`{"http://":{}}`)}, {SecretTypeDockercfg, []byte(`{"[":{}}`)},
	} {
		if _, err := KeychainFromSecrets(s); err == nil || strings.Contains(err.Error(), "secret-word") {
			t.Errorf("%.40q: %v", s, err)
		}
	}
	if k, err := KeychainFromSecrets(); err != nil || k == nil {
		t.Errorf("no secrets: %v, %v", k, err)
	}
}

func TestDecodeConfigRefuses(t *testing.T) {
	for _, s := range []string{``, `[]`, `{"config":{"Cmd":"x"}}`, `{"config":{"Env":["x"]}}`, `{"config":{"Env":["=x"]}}`, `{"config":{"Cmd":["a\u0000b"]}}`, strings.Repeat(" ", maxConfigBytes) + "{}"} {
		if _, _, _, err := decodeConfig([]byte(s)); !strings.Contains(errText(err), "corrupt") {
			t.Errorf("%.40q: %v", s, err)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
