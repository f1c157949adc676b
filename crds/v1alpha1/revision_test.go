// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"encoding/json"
	"testing"
)

func decodeSpec(t *testing.T, text string) *SnapshotTemplateSpec {
	t.Helper()
	var spec SnapshotTemplateSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		t.Fatal(err)
	}
	return &spec
}

// The digest is in snapshot manifests: it must not change by accident.
func TestRevisionIsStable(t *testing.T) {
	got := decodeSpec(t, `{"image":"app:1","shape":{"cpu":"250m","memory":"256Mi"},"setup":[{"command":["make"]}],"readiness":{"tcpSocket":{"port":80}}}`).Revision()
	if want := "7137ea5030941f1b"; got != want {
		t.Errorf("revision = %s, want %s: every template in every cluster would be built again", got, want)
	}
}

// What the controller decodes from the template, and the node from its NodeLedger, has
// one revision.
func TestRevisionIsTheSameOnBothSides(t *testing.T) {
	for _, text := range []string{
		`{"image":"app:1","shape":{"cpu":"250m","memory":"256Mi"}}`,
		`{"image":"app:1","shape":{"cpu":"0.25","memory":"262144Ki"}}`,
		`{"image":"app:1","shape":{"cpu":"0.250","memory":268435456},"setup":[],"env":null}`,
		`{"image":"app:1","shape":{"cpu":"250000u","memory":"268435456"},"buildTimeoutSeconds":1800}`,
		`{"guestOS":"linux","image":"app:1","shape":{"cpu":"250m","memory":"256Mi"}}`,
	} {
		controller := decodeSpec(t, text)
		_ = controller.Shape.CPU.String() // a quantity remembers how it was printed
		wire, err := json.Marshal(NodeLedgerSpec{Templates: []TemplateRevision{{Spec: *controller}}})
		if err != nil {
			t.Fatal(err)
		}
		var node NodeLedgerSpec
		if err := json.Unmarshal(wire, &node); err != nil {
			t.Fatal(err)
		}
		want := decodeSpec(t, `{"image":"app:1","shape":{"cpu":"250m","memory":"256Mi"}}`).Revision()
		if a, b := controller.Revision(), node.Templates[0].Spec.Revision(); a != want || b != want {
			t.Errorf("%s: controller %s, node %s, want %s", text, a, b, want)
		}
		if a, b := controller.DeepCopy().Revision(), controller.Revision(); a != b {
			t.Errorf("%s: a copy has revision %s instead of %s", text, a, b)
		}
	}
}

func TestRevisionTellsSpecsApart(t *testing.T) {
	base := `{"image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"readiness":{"httpGet":{"port":80}}}`
	seen := map[string]string{decodeSpec(t, base).Revision(): base}
	for _, text := range []string{
		`{"guestOS":"macos","image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"readiness":{"httpGet":{"port":80}}}`,
		`{"image":"app:2","shape":{"cpu":"1","memory":"256Mi"},"readiness":{"httpGet":{"port":80}}}`,
		`{"image":"app:1","shape":{"cpu":"1001m","memory":"256Mi"},"readiness":{"httpGet":{"port":80}}}`,
		`{"image":"app:1","shape":{"cpu":"1","memory":"258Mi"},"readiness":{"httpGet":{"port":80}}}`,
		`{"image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"readiness":{"httpGet":{"port":81}}}`,
		`{"image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"readiness":{"httpGet":{"port":80,"path":"/x"}}}`,
		`{"image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"setup":[{"command":["a","b"]}],"readiness":{"httpGet":{"port":80}}}`,
		`{"image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"setup":[{"command":["a b"]}],"readiness":{"httpGet":{"port":80}}}`,
		`{"image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"warmCache":[{"command":["a b"]}],"readiness":{"httpGet":{"port":80}}}`,
	} {
		r := decodeSpec(t, text).Revision()
		if other, ok := seen[r]; ok {
			t.Errorf("%s and %s have one revision", text, other)
		}
		seen[r] = text
	}
	if same := decodeSpec(t, `{"image":"app:1","shape":{"cpu":"1","memory":"256Mi"},"readiness":{"httpGet":{"port":80,"path":"/"},"timeoutSeconds":60,"periodSeconds":1}}`).Revision(); seen[same] != base {
		t.Error("written defaults make another revision")
	}
}

func TestWarmName(t *testing.T) {
	for _, test := range []struct {
		namespace, pool string
		want            string
		ok              bool
	}{
		{"ci", "go", "warm.firkin.dev/ci.go", true},
		{"0123456789012", "01234567890123456789012345678901234567890123456789"[:49], "", true},
		{"0123456789012", "01234567890123456789012345678901234567890123456789", "", false},
	} {
		name, ok := WarmName(test.namespace, test.pool)
		if ok != test.ok || test.want != "" && name != test.want {
			t.Errorf("%s/%s: %q, %v", test.namespace, test.pool, name, ok)
		}
	}
}
