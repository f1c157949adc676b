// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	celenvironment "k8s.io/apiserver/pkg/cel/environment"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

var updatePolicy = flag.Bool("update-policy", false, "write the chart's expression of what a pod may not ask for")

// policyFile is what the chart's admission policy evaluates: this package's rules, as CEL.
const policyFile = "../charts/vk-firkin/files/unsupported.cel"

// notAtAdmission are fields that are gone when a pod comes to a node.
var notAtAdmission = []string{"schedulingGates"}

// celWriter writes rules as a CEL expression that says what walker says, in its order.
type celWriter struct{ rules map[string]rule }

// fields is a string expression: the faults of a struct that the expression value has, or
// "" when nothing in it can be one. shown is a CEL string expression.
func (w celWriter) fields(t reflect.Type, path, value, shown string, depth int) string {
	return joined(w.list(t, path, value, shown, depth), depth)
}

func joined(parts []string, depth int) string {
	if len(parts) <= 1 {
		return strings.Join(parts, "")
	}
	indent := "\n" + strings.Repeat("  ", depth)
	return "[" + indent + "  " + strings.Join(parts, ","+indent+"  ") + indent + "].filter(m, m != '').join('; ')"
}

func (w celWriter) list(t reflect.Type, path, value, shown string, depth int) []string {
	var parts []string
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			if f.Anonymous {
				parts = append(parts, w.list(f.Type, path, value, shown, depth)...)
			}
			continue
		}
		if slices.Contains(notAtAdmission, join(path, name)) {
			continue
		}
		if part := w.field(f.Type, join(path, name), value+"."+name, plus(shown, "."+name), options == "", depth); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

// plus appends a constant to a CEL string expression.
func plus(shown, text string) string {
	if before, ok := strings.CutSuffix(shown, "'"); ok {
		return before + text + "'"
	}
	return shown + " + '" + text + "'"
}

// field is the expression of one field. One that is null when it is empty is there all the same.
func (w celWriter) field(t reflect.Type, path, value, shown string, null bool, depth int) string {
	r, known := w.rules[path]
	plain := t
	if t.Kind() == reflect.Pointer {
		plain = t.Elem()
	}
	switch {
	case !known:
		return given(t, value, fmt.Sprintf("%s ? %s : ''", "%s", plus(shown, ": not supported yet")))
	case r.into:
		return w.into(plain, path, value, shown, null, depth)
	case r.only == nil:
		return ""
	}
	text := plus(shown, ": not supported yet")
	cond := "%s"
	if len(r.only) > 0 {
		cond = fmt.Sprintf("%%s && !(%s in ['%s'])", value, strings.Join(r.only, "', '"))
		text = fmt.Sprintf("%s + string(%s) + ' is not supported yet, only %s'", plus(shown, ": "), value, strings.Join(r.only, ", "))
	}
	if r.hint != "" {
		text = plus(text, strings.ReplaceAll(" ("+r.hint+")", "'", `\'`))
	}
	return given(t, value, cond+" ? "+text+" : ''")
}

// given fills in the condition that a field is not zero.
func given(t reflect.Type, value, format string) string {
	has := "has(" + value + ")"
	switch t.Kind() { //nolint:exhaustive // the rest is of no special form
	case reflect.Bool:
		has += " && " + value
	case reflect.String:
		has += " && " + value + " != ''"
	case reflect.Int32, reflect.Int64:
		has += " && " + value + " != 0"
	case reflect.Slice, reflect.Map:
		has += " && " + value + " != null && " + value + ".size() > 0"
	}
	return strings.Replace(format, "%s", has, 1)
}

func hasList(value string, null bool) string {
	if null {
		return "has(" + value + ") && " + value + " != null"
	}
	return "has(" + value + ")"
}

func (w celWriter) into(t reflect.Type, path, value, shown string, null bool, depth int) string {
	key, element := fmt.Sprintf("i%d", depth), fmt.Sprintf("e%d", depth)
	var each string
	switch t.Kind() { //nolint:exhaustive // others have nothing below
	case reflect.Struct:
		if inner := w.fields(t, path, value, shown, depth+1); inner != "" {
			return fmt.Sprintf("has(%s) ? (%s) : ''", value, inner) // CEL's grammar has no conditional there
		}
		return ""
	case reflect.Slice:
		each = w.fields(t.Elem(), path+"[]", element, plus(plus(shown, "[")+" + string("+key+") + ']'", ""), depth+1)
	case reflect.Map:
		var names []string
		for name := range w.rules {
			if rest, ok := strings.CutPrefix(name, path+"."); ok {
				names = append(names, rest)
			}
		}
		slices.Sort(names)
		names = append(names, v1alpha1.ResourceMacOSVM)
		each = fmt.Sprintf("%s in ['%s'] || %s.startsWith('%s') ? '' : %s", key, strings.Join(names, "', '"), key, v1alpha1.ResourceWarmPrefix,
			plus(plus(shown, ".")+" + "+key+" + ''", ": not supported yet"))
	}
	if each == "" {
		return ""
	}
	return fmt.Sprintf("%s ? %s.transformList(%s, %s, %s).filter(m, m != '').join('; ') : ''", hasList(value, null), value, key, element, each)
}

// policyExpression is the whole: what unsupported says of a pod, and of its ephemeral containers
// what unsupportedEphemeral says.
func policyExpression() string {
	w := celWriter{rules: rules()}
	parts := w.list(reflect.TypeFor[corev1.PodSpec](), "", "object.spec", "'spec'", 0)
	w.rules["ephemeralContainers"] = into()
	parts = append(parts, w.into(reflect.TypeFor[[]corev1.EphemeralContainer](), "ephemeralContainers", "object.spec.ephemeralContainers", "'spec.ephemeralContainers'", false, 0))
	annotation := fmt.Sprintf("object.metadata.annotations['%s']", AnnotationPath)
	parts = append(parts, fmt.Sprintf(`has(object.metadata.annotations) && '%s' in object.metadata.annotations && !(%s in ['', '%s', '%s']) ? 'metadata.annotations[%s]: "' + %s + '" is no way to a machine, only %s and %s may be asked for' : ''`,
		AnnotationPath, annotation, PathRestore, PathCold, AnnotationPath, annotation, PathRestore, PathCold))
	for _, kind := range []string{"initContainers", "containers"} {
		list := "object.spec." + kind
		parts = append(parts, fmt.Sprintf("%s ? %s.transformList(i0, e0, has(e0.ports) ? e0.ports.transformList(i1, e1, has(e1.hostPort) && e1.hostPort != 0 && has(e1.protocol) && e1.protocol == 'SCTP' ? "+
			"'spec.%s[' + string(i0) + '].ports[' + string(i1) + '].hostPort: not supported with protocol SCTP, only with TCP and UDP' : '').filter(m, m != '').join('; ') : '').filter(m, m != '').join('; ') : ''", hasList(list, true), list, kind))
	}
	return joined(parts, 0) + "\n"
}

// TestPolicyIsCurrent: the chart refuses at admission what this package refuses on the node.
func TestPolicyIsCurrent(t *testing.T) {
	want := policyExpression()
	if *updatePolicy {
		if err := os.WriteFile(policyFile, []byte(want), 0o644); err != nil { //nolint:gosec // it is a source file
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(policyFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("run go test ./provider -run TestPolicyIsCurrent -update-policy (-want +got):\n%s", diff)
	}
}

// oldestServer is the oldest API server of the chart's kubeVersion. A server compiles what is new
// by the rules of the release before its own, so that it can be taken back.
const oldestServer = "1.32"

func policyProgram(t *testing.T) cel.Program {
	t.Helper()
	set, err := celenvironment.MustBaseEnvSet(version.MustParse(oldestServer)).Extend(celenvironment.VersionedOptions{
		IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: []cel.EnvOption{cel.Variable("object", cel.DynType)}})
	if err != nil {
		t.Fatal(err)
	}
	env := set.NewExpressionsEnv()
	ast, issues := env.Compile(policyExpression())
	if issues.Err() != nil {
		t.Fatal(issues.Err())
	}
	program, err := env.Program(ast)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func policySays(t *testing.T, program cel.Program, pod *corev1.Pod) string {
	t.Helper()
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := program.Eval(map[string]any{"object": object})
	if err != nil {
		return "error: " + err.Error()
	}
	text, ok := out.(types.String)
	if !ok {
		return "no string: " + fmt.Sprint(out)
	}
	return string(text)
}

// TestPolicySaysWhatTheNodeSays sets every field that a pod can have, one after the other, and
// compares what the policy finds with what the node finds.
func TestPolicySaysWhatTheNodeSays(t *testing.T) {
	program := policyProgram(t)
	pods, refused := 0, 0
	t.Logf("policy of %d bytes", len(policyExpression()))
	everyField(reflect.TypeFor[corev1.PodSpec](), 6, func(path string, set func(reflect.Value)) {
		if slices.ContainsFunc(notAtAdmission, func(field string) bool { return strings.HasPrefix(path, field) }) {
			return
		}
		pod := &corev1.Pod{}
		set(reflect.ValueOf(&pod.Spec).Elem())
		want := strings.Join(unsupported(pod), "; ")
		for i := range pod.Spec.EphemeralContainers {
			want = strings.Join(unsupportedEphemeral(pod, pod.Spec.EphemeralContainers[i].Name), "; ")
		}
		if got := policySays(t, program, pod); got != want {
			t.Errorf("%s: the policy says %q, the node %q", path, got, want)
		}
		pods++
		if want != "" {
			refused++
		}
	})
	if pods < 500 || refused < 100 {
		t.Errorf("only %d fields were tried, %d of them refused", pods, refused)
	}
	for name, pod := range map[string]*corev1.Pod{
		"ordinary": {Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "b"}}}},
		"path":     {ObjectMeta: podMeta(AnnotationPath, "elsewhere")},
		"good":     {ObjectMeta: podMeta(AnnotationPath, PathCold)},
		"many": {Spec: corev1.PodSpec{HostNetwork: true, HostPID: true, InitContainers: []corev1.Container{{}, {VolumeDevices: []corev1.VolumeDevice{{}}}},
			Containers: []corev1.Container{{}, {Ports: []corev1.ContainerPort{{HostPort: 1, Protocol: corev1.ProtocolSCTP}}}}}},
		"pool": {Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
			v1alpha1.ResourceWarmPrefix + "ns.pool": resource.MustParse("1"), v1alpha1.ResourceMacOSVM: resource.MustParse("1"), "nvidia.com/gpu": resource.MustParse("1")}}}}}},
	} {
		if got, want := policySays(t, program, pod), strings.Join(unsupported(pod), "; "); got != want {
			t.Errorf("%s: the policy says %q, the node %q", name, got, want)
		}
	}
}
