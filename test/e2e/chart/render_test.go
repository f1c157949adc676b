// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	serializerjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/cel/environment"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/vk-firkin/vk-firkin/crds"
)

// releases are those that the chart supports, each with the folder of k8s.io/api that has an object of
// each kind with every field that the release knows.
var releases = []struct{ minor, data string }{{"1.33", "v1.33.0"}, {"1.34", "v1.34.0"}, {"1.35", "v1.35.0"}, {"1.36", "v1.36.0"}, {"1.37", "HEAD"}}

var valueSets = []string{"", "testdata/minimal.yaml", "testdata/everything.yaml"}

func values(set string) []string {
	if set == "" {
		return nil
	}
	return []string{"--values", set}
}

// TestLint: helm lint has nothing to say.
func TestLint(t *testing.T) {
	for _, set := range valueSets {
		out, err := helm(t, "", append([]string{"lint", "--strict", chartDir}, values(set)...)...)
		if err != nil || strings.Contains(out, "[WARNING]") || strings.Contains(out, "[ERROR]") {
			t.Errorf("%s: %v\n%s", set, err, out)
		}
	}
}

// TestSchemaRefuses: a value that is misspelt or out of bounds is told before anything is done.
func TestSchemaRefuses(t *testing.T) {
	for setting, says := range map[string]string{
		"controller.replica=3":                   "replica",
		"controller.replicas=-1":                 "replicas",
		"controller.image.pullPolicy=Sometimes":  "pullPolicy",
		"controller.image.digest=latest":         "digest",
		"controller.extraArgs={verbose}":         "extraArgs",
		"policies.pods.selecting=Refuse":         "selecting",
		"policies.preferReady.weight=101":        "weight",
		"policies.supply.maxTemplateMemory=lots": "maxTemplateMemory",
		"join.token=abc":                         "token",
		"fullnameOverride=Big_Name":              "fullnameOverride",
	} {
		if out, err := helm(t, "", "template", "x", chartDir, "--set", setting); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: want a refusal that names %s, got %v %.200s", setting, says, err, out)
		}
	}
	if _, err := helm(t, "", "template", "x", chartDir, "--kube-version", "1.32.9"); err == nil || !strings.Contains(err.Error(), "1.33") {
		t.Errorf("Kubernetes 1.32 is not refused: %v", err)
	}
}

// TestNamesWithDots: a release may have dots in its name; a Service may not, nor the group of a bootstrap token, which
// Kubernetes would ignore with all of the token.
func TestNamesWithDots(t *testing.T) {
	const name = "team.a-with.a.name-that.is.cut.where.a-dot.was"
	out, err := helm(t, "", "template", name, chartDir, "-f", "testdata/everything.yaml", "--set", "fullnameOverride=")
	if err != nil {
		t.Fatal(err)
	}
	group := regexp.MustCompile(`(?m)^  auth-extra-groups: "(.*)"$`).FindStringSubmatch(out)
	if len(group) != 2 || !regexp.MustCompile(`\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`).MatchString(group[1]) {
		t.Fatalf("the token's group is %q", group)
	}
	if n := strings.Count(out, "name: \""+group[1]+"\"") + strings.Count(out, "--join-group="+group[1]+"\n"); n != 2 {
		t.Errorf("%d of binding and controller have the token's group", n)
	}
	service := regexp.MustCompile(`(?m)^kind: Service\nmetadata:\n  name: (.*)$`).FindStringSubmatch(out)
	if len(service) != 2 || !regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`).MatchString(service[1]) {
		t.Errorf("the Service is %q", service)
	}
}

// TestRender: for each release, what is rendered has only fields that the release knows, of the right types.
func TestRender(t *testing.T) {
	api := moduleDir(t, "k8s.io/api")
	decoder := strictDecoder(t)
	for _, release := range releases {
		for _, set := range valueSets {
			objects := render(t, release.minor, set)
			seen := map[string]bool{}
			for _, o := range objects {
				id := fmt.Sprintf("%s %s %s/%s", release.minor, o.GroupVersionKind(), o.GetNamespace(), o.GetName())
				if seen[id] {
					t.Errorf("%s is there twice", id)
				}
				seen[id] = true
				if o.GetLabels()["app.kubernetes.io/instance"] != "x" || o.GetLabels()["app.kubernetes.io/managed-by"] != "Helm" {
					t.Errorf("%s has labels %v", id, o.GetLabels())
				}
				if o.GroupVersionKind().Group == "monitoring.coreos.com" {
					continue // of the Prometheus operator, whose schema is not here
				}
				data, err := o.MarshalJSON()
				if err == nil {
					_, _, err = decoder.Decode(data, nil, nil)
				}
				if err != nil {
					t.Errorf("%s: %v", id, err)
				}
				if o.GetKind() == "CustomResourceDefinition" {
					continue // the tests of crds validate them
				}
				for _, path := range unknownFields(o.Object, sample(t, api, release.data, o), "") {
					t.Errorf("%s: %s is not a field of this release", id, path)
				}
			}
			switch {
			case set == "testdata/minimal.yaml" && len(objects) != 0:
				t.Errorf("with everything off there are %d objects", len(objects))
			case set == "" && len(objects) < 25 || set == "testdata/everything.yaml" && len(objects) < 40:
				t.Errorf("%s: only %d objects", set, len(objects))
			}
		}
	}
	for name, want := range map[string][]string{
		`{"kind":"Pod","spec":{"restartPolicy":"Never","nodeSelector":{"a":"b"}}}`: nil,
		`{"kind":"Pod","spec":{"containers":[{"name":"a","nme":"b"}],"what":1}}`:   {"spec.containers[0].nme", "spec.what"},
	} {
		o := &unstructured.Unstructured{}
		if err := json.Unmarshal([]byte(name), &o.Object); err != nil {
			t.Fatal(err)
		}
		o.SetAPIVersion("v1")
		got := unknownFields(o.Object, sample(t, api, "v1.33.0", o), "")
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: unknown are %v, want %v", name, got, want)
		}
	}
}

// TestPoliciesCompile: each release's API server takes the policies' expressions. It compiles new ones
// by the rules of the release before its own.
func TestPoliciesCompile(t *testing.T) {
	for i, compatible := range []string{"1.32", "1.33", "1.34", "1.35", "1.36"} {
		set, err := environment.MustBaseEnvSet(version.MustParse(compatible)).Extend(environment.VersionedOptions{
			IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: []cel.EnvOption{
				cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType), cel.Variable("request", cel.DynType),
				cel.Variable("namespaceObject", cel.DynType), cel.Variable("params", cel.DynType), cel.Variable("variables", cel.DynType)}})
		if err != nil {
			t.Fatal(err)
		}
		env, compiled := set.NewExpressionsEnv(), 0
		compile := func(where, expression string) {
			if expression == "" {
				return
			}
			compiled++
			if _, issues := env.Compile(expression); issues.Err() != nil {
				t.Errorf("%s: %s: %v", compatible, where, issues.Err())
			}
		}
		for _, o := range render(t, releases[i].minor, "") {
			if o.GetKind() != "ValidatingAdmissionPolicy" {
				continue
			}
			var p admissionv1.ValidatingAdmissionPolicy
			convert(t, o, &p)
			for _, m := range p.Spec.MatchConditions {
				compile(p.Name+" "+m.Name, m.Expression)
			}
			for _, v := range p.Spec.Variables {
				compile(p.Name+" "+v.Name, v.Expression)
			}
			for _, v := range p.Spec.Validations {
				compile(p.Name, v.Expression)
				compile(p.Name, v.MessageExpression)
			}
		}
		if compiled < 30 {
			t.Errorf("only %d expressions", compiled)
		}
	}
}

// TestSameRights: the chart gives who it installs for what crds/rbac.yaml gives, and no more.
func TestSameRights(t *testing.T) {
	all, err := crds.All()
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string][]rbacv1.PolicyRule{}, map[string][]rbacv1.PolicyRule{}
	for _, o := range all {
		var role rbacv1.ClusterRole
		if o.GetKind() == "ClusterRole" {
			convert(t, o, &role)
			want[role.Name] = slices.DeleteFunc(role.Rules, isOwn)
		}
	}
	for _, o := range render(t, "1.36", "") {
		var role rbacv1.ClusterRole
		if o.GetKind() == "ClusterRole" {
			convert(t, o, &role)
			got[role.Name] = role.Rules
		}
		for _, same := range all { // the policies that both have
			if same.GetKind() == o.GetKind() && same.GetName() == o.GetName() && strings.HasPrefix(o.GetKind(), "ValidatingAdmission") && !reflect.DeepEqual(same.Object["spec"], o.Object["spec"]) {
				t.Errorf("%s %s is not that of crds/rbac.yaml", o.GetKind(), o.GetName())
			}
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the chart's rules are %+v, those of crds/rbac.yaml %+v", got, want)
	}
}

// isOwn: the chart lets the controller have its own lease and what it remembers, by a Role.
func isOwn(r rbacv1.PolicyRule) bool {
	return slices.Equal(r.Resources, []string{"leases"}) || slices.Equal(r.ResourceNames, []string{"vk-firkin-joined"})
}

// TestValuesArrive: what everything.yaml sets is where it belongs.
func TestValuesArrive(t *testing.T) {
	var all bytes.Buffer
	for _, o := range render(t, "1.36", "testdata/everything.yaml") {
		data, err := o.MarshalJSON() // YAML would break long lines
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
		switch o.GetKind() {
		case "Deployment":
			var d appsv1.Deployment
			convert(t, o, &d)
			c := d.Spec.Template.Spec.Containers[0]
			if *d.Spec.Replicas != 3 || c.Image != "registry.example:5000/tools/vk-firkin@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" {
				t.Errorf("deployment of %d with image %s", *d.Spec.Replicas, c.Image)
			}
			if c.StartupProbe.FailureThreshold != 50 || c.StartupProbe.PeriodSeconds != 2 {
				t.Errorf("startup probe %v for 100 s", c.StartupProbe)
			}
			for key, value := range d.Spec.Selector.MatchLabels {
				if d.Spec.Template.Labels[key] != value {
					t.Errorf("the selector %s=%s does not find the pods", key, value)
				}
			}
			for _, arg := range []string{"--leader-elect-lease-duration=20s", "--log-level=debug", "--node-grace-period=60s", "--metrics-address=:9090", "--node-networks=192.0.2.0/24", "--reserved-names=api.corp.example"} {
				if !slices.Contains(c.Args, arg) {
					t.Errorf("arguments %v lack %s", c.Args, arg)
				}
			}
		case "Secret":
			var s corev1.Secret
			convert(t, o, &s)
			if s.Type == corev1.SecretTypeBootstrapToken && (s.Name != "bootstrap-token-abcdef" || s.StringData["token-secret"] != "0123456789abcdef" || s.StringData["auth-extra-groups"] != "system:bootstrappers:farm") {
				t.Errorf("token %s: %v", s.Name, s.StringData)
			}
		}
	}
	for _, part := range []string{"weight: 7", `"count/warmpools.firkin.dev":"0"`, `"release":"prometheus"`, "grafana_dashboard", `"team":"platform"`, "FirkinPoolShort"} {
		if !strings.Contains(all.String(), part) {
			t.Errorf("nothing says %q", part)
		}
	}
}

func render(t *testing.T, minor, set string) (objects []*unstructured.Unstructured) {
	t.Helper()
	args := []string{"template", "x", chartDir, "--kube-version", minor + ".0"}
	if set != "testdata/everything.yaml" { // which has a name of its own
		args = append(args, "--set", "fullnameOverride=vk-firkin")
	}
	if minor == "1.36" || minor == "1.37" { // the first that have them in v1
		args = append(args, "--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")
	} else if set == "testdata/everything.yaml" {
		args = append(args, "--set", "policies.preferReady.enabled=false")
	}
	out, err := helm(t, "", append(args, values(set)...)...)
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq("\n"+out, "\n---") {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(document), &o.Object); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
	return objects
}

// strictDecoder knows the types of the newest release, and refuses what they do not have.
func strictDecoder(t *testing.T) runtime.Decoder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializerjson.NewSerializerWithOptions(serializerjson.DefaultMetaFactory, scheme, scheme, serializerjson.SerializerOptions{Strict: true})
}

func convert(t *testing.T, from *unstructured.Unstructured, to any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(from.Object, to, true); err != nil {
		t.Fatalf("%s %s: %v", from.GetKind(), from.GetName(), err)
	}
}

func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// sample is an object of the kind with every field that the release knows.
func sample(t *testing.T, api, data string, o *unstructured.Unstructured) map[string]any {
	t.Helper()
	gvk := o.GroupVersionKind()
	group := gvk.Group
	if group == "" {
		group = "core"
	}
	content, err := os.ReadFile(filepath.Join(api, "testdata", data, group+"."+gvk.Version+"."+gvk.Kind+".json"))
	if err != nil {
		t.Fatalf("Kubernetes %s has no %s: %v", data, gvk, err)
	}
	var object map[string]any
	if err := json.Unmarshal(content, &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// unknownFields are the paths in an object that a full one does not have. Pure.
func unknownFields(object, full any, path string) (unknown []string) {
	switch o := object.(type) {
	case map[string]any:
		f, _ := full.(map[string]any)
		name := path[strings.LastIndexByte(path, '.')+1:]
		for key, v := range o {
			if free, ok := f[name+"Key"]; ok && len(f) == 1 { // a map with keys of the user's
				unknown = append(unknown, unknownFields(v, free, path+"["+key+"]")...)
				continue
			}
			below := strings.TrimPrefix(path+"."+key, ".")
			if _, ok := f[key]; !ok {
				unknown = append(unknown, below)
				continue
			}
			unknown = append(unknown, unknownFields(v, f[key], below)...)
		}
	case []any:
		f, _ := full.([]any)
		for i, v := range o {
			if len(f) == 0 {
				return append(unknown, path)
			}
			unknown = append(unknown, unknownFields(v, f[0], fmt.Sprintf("%s[%d]", path, i))...)
		}
	}
	return unknown
}
