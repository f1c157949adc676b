// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package control

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

const tables = "../../../crds/testdata"

// The unit tests of crds check the same tables with the API server's code; here the API server does.
func TestServerAcceptsGoodObjects(t *testing.T) {
	for _, object := range accepted(t) {
		status := object.Object["status"]
		if err := admin.Create(t.Context(), object); err != nil {
			t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
			continue
		}
		t.Cleanup(func() { remove(t, object) })
		if status == nil {
			continue
		}
		object.Object["status"] = status
		if err := admin.Status().Update(t.Context(), object); err != nil {
			t.Errorf("status of %s %s: %v", object.GetKind(), object.GetName(), err)
		}
	}
	// What the server stored is what the types read, with the revision of what was sent.
	var template v1alpha1.SnapshotTemplate
	if err := admin.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "full"}, &template); err != nil {
		t.Fatal(err)
	}
	var sent v1alpha1.SnapshotTemplate
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(accepted(t)[0].Object, &sent); err != nil {
		t.Fatal(err)
	}
	if template.Spec.Revision() != sent.Spec.Revision() {
		t.Error("the server's defaults make another revision")
	}
	if template.Spec.BuildTimeoutSeconds != 1800 || template.Spec.Readiness.PeriodSeconds != 1 {
		t.Errorf("defaults: %+v", template.Spec)
	}
}

func TestServerRefusesBadObjects(t *testing.T) {
	base := map[string]map[string]any{}
	for _, object := range accepted(t) {
		if base[object.GetKind()] == nil {
			base[object.GetKind()] = object.Object
		}
	}
	for _, r := range refusals(t, "refused.yaml") {
		object := &unstructured.Unstructured{Object: merge(base[r.Kind], r.Patch)}
		err := admin.Create(t.Context(), object, client.DryRunAll)
		if err == nil || !strings.Contains(err.Error(), r.Field) || !strings.Contains(err.Error(), r.Says) {
			t.Errorf("%s %v: want %s: ...%s..., got %v", r.Kind, r.Patch, r.Field, r.Says, err)
		}
	}
	ledger := &unstructured.Unstructured{Object: merge(base["NodeLedger"], map[string]any{"metadata": map[string]any{"name": "liar"}})}
	if err := admin.Create(t.Context(), ledger); err != nil {
		t.Fatal(err)
	}
	defer remove(t, ledger)
	for _, r := range refusals(t, "refused-status.yaml") {
		object := &unstructured.Unstructured{Object: merge(ledger.Object, merge(map[string]any{"status": base["NodeLedger"]["status"]}, r.Patch))}
		err := admin.Status().Update(t.Context(), object, &client.SubResourceUpdateOptions{UpdateOptions: client.UpdateOptions{DryRun: []string{"All"}}})
		if err == nil || !strings.Contains(err.Error(), r.Field) || !strings.Contains(err.Error(), r.Says) {
			t.Errorf("status %v: want %s: ...%s..., got %v", r.Patch, r.Field, r.Says, err)
		}
	}
}

func TestKubectl(t *testing.T) {
	for _, object := range accepted(t)[:3] {
		if err := admin.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { remove(t, object) })
	}
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"get", "wp", "full"}, []string{"TEMPLATE", "REPLICAS", "READY", "RESTORING", "ACTIVE", "STATUS", "AGE"}},
		{[]string{"get", "snaptpl", "full"}, []string{"IMAGE", "CPU", "MEMORY", "BUILDING", "FAILED", "registry.example:5000/team/app:1.2", "250m", "256Mi"}},
		{[]string{"get", "nl", "full"}, []string{"ACTIVE", "WARM", "MEMORY-FREE"}},
		{[]string{"get", "firkin"}, []string{"warmpool.firkin.dev/full", "snapshottemplate.firkin.dev/full", "nodeledger.firkin.dev/full"}},
		{[]string{"explain", "warmpool.spec"}, []string{"maxAge", "is replaced", "templateRef", "-required-", "enum: OnDemand, Never", "firkin.dev/machine"}},
		{[]string{"explain", "snapshottemplate.spec.readiness.httpGet"}, []string{"port", "path", "status from 200 to 399"}},
		{[]string{"explain", "nodeledger.status.pools"}, []string{"skipReason", "InsufficientCapacity"}},
		{[]string{"scale", "warmpool/full", "--replicas=7"}, []string{"scaled"}},
		{[]string{"get", "warmpool/full", "-o", "jsonpath={.spec.replicas}"}, []string{"7"}},
	} {
		out := kubectl(t, test.args...)
		for _, part := range test.want {
			if !strings.Contains(out, part) {
				t.Errorf("kubectl %s does not say %q:\n%s", strings.Join(test.args, " "), part, out)
			}
		}
	}
}

// TestNodesWriteTheirOwnLedger is the role and the admission policy of nodes.
func TestNodesWriteTheirOwnLedger(t *testing.T) {
	dir := filepath.Join(directory, "mac-7")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := plane.Credentials(t.Context(), "mac-7", dir); err != nil {
		t.Fatal(err)
	}
	c, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	node, err := newClient(c)
	if err != nil {
		t.Fatal(err)
	}
	ledger := func(name string) *v1alpha1.NodeLedger {
		l := &v1alpha1.NodeLedger{}
		l.Name = name
		return l
	}
	refused := func(what, says string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: want a refusal that says %q, got %v", what, says, err)
		}
	}
	other := ledger("mac-8")
	if err := admin.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	defer remove(t, other)
	mine := ledger("mac-7")
	mine.Spec.Targets = []v1alpha1.PoolTarget{{Namespace: "default", Pool: "p", Template: "t", Revision: "r", Replicas: 1}}
	refused("create with targets", "only the controller", node.Create(t.Context(), mine))
	mine = ledger("mac-7")
	if err := node.Create(t.Context(), mine); err != nil {
		t.Fatalf("create its own: %v", err)
	}
	defer remove(t, mine)
	mine.Status.WarmMachines = 3
	if err := node.Status().Update(t.Context(), mine); err != nil {
		t.Errorf("write its own status: %v", err)
	}
	mine.Spec.Targets = []v1alpha1.PoolTarget{{Namespace: "default", Pool: "p", Template: "t", Revision: "r", Replicas: 1}}
	refused("write its own spec", "cannot update", node.Update(t.Context(), mine))
	refused("create another's", "its own name", node.Create(t.Context(), ledger("mac-9")))
	refused("write another's status", "its own name", node.Status().Update(t.Context(), other))
	var templates v1alpha1.SnapshotTemplateList
	if err := node.List(t.Context(), &templates); err != nil {
		t.Errorf("list templates: %v", err)
	}
	var pools v1alpha1.WarmPoolList
	refused("list pools", "cannot list", node.List(t.Context(), &pools))
}

type refusal struct {
	Kind  string         `json:"kind"`
	Field string         `json:"field"`
	Says  string         `json:"says"`
	Patch map[string]any `json:"patch"`
}

func refusals(t *testing.T, file string) (table []refusal) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(tables, file))
	if err == nil {
		data, err = yaml.ToJSON(data)
	}
	if err == nil {
		err = json.Unmarshal(data, &table)
	}
	if err != nil || len(table) == 0 {
		t.Fatalf("%s: %v", file, err)
	}
	return table
}

// merge is RFC 7386.
func merge(base, patch map[string]any) map[string]any {
	merged := maps.Clone(base)
	if merged == nil {
		merged = map[string]any{}
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(merged, key)
		case map[string]any:
			below, _ := merged[key].(map[string]any)
			merged[key] = merge(below, value)
		default:
			merged[key] = value
		}
	}
	return runtime.DeepCopyJSON(merged)
}

func accepted(t *testing.T) (objects []*unstructured.Unstructured) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(tables, "accepted.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		object := &unstructured.Unstructured{}
		if err == nil {
			document, err = yaml.ToJSON(document)
		}
		if err == nil {
			err = json.Unmarshal(document, &object.Object)
		}
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, object)
	}
}
