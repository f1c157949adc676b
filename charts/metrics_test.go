// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package charts

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/yaml"

	"github.com/vk-firkin/vk-firkin/warmpool/controller"
)

// describer is a registry that only asks what there is.
type describer struct {
	prometheus.Registerer
	metrics map[string][]string
}

// desc reads a Desc: its library shows name and labels nowhere else.
var desc = regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)

func (d describer) Register(c prometheus.Collector) error {
	ch := make(chan *prometheus.Desc)
	go func() {
		defer close(ch)
		c.Describe(ch)
	}()
	for one := range ch {
		m := desc.FindStringSubmatch(one.String())
		if m == nil {
			return fmt.Errorf("cannot read %s", one)
		}
		d.metrics[m[1]] = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' })
	}
	return nil
}

// known are all metrics of the project with their labels: those of nodes are in a golden file
// that a test of provider/metrics compares with the registry.
func known(t *testing.T) map[string][]string {
	t.Helper()
	d := describer{metrics: map[string][]string{}}
	if _, err := controller.NewMetrics(d); err != nil {
		t.Fatal(err)
	}
	d.metrics["firkin_controller_pass_seconds_bucket"] = []string{"le"}
	d.metrics["firkin_controller_pass_seconds_count"] = nil
	// Those of a node's certificates are made with an identity, so they are read in the source.
	source := read(t, "../provider/identity/metrics.go")
	label := regexp.MustCompile(`Labels\{"(\w+)"`).FindStringSubmatch(source)
	for _, name := range regexp.MustCompile(`NewDesc\("(\w+)"`).FindAllStringSubmatch(source, -1) {
		d.metrics[name[1]] = label[1:]
	}
	for line := range strings.Lines(read(t, "../provider/metrics/testdata/names.golden")) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			t.Fatalf("line %q", line)
		}
		labels := strings.FieldsFunc(strings.Trim(fields[2], "{}"), func(r rune) bool { return r == ',' })
		if fields[0] != "histogram" {
			d.metrics[fields[1]] = labels
			continue
		}
		d.metrics[fields[1]+"_bucket"] = append(slices.Clone(labels), "le")
		d.metrics[fields[1]+"_count"], d.metrics[fields[1]+"_sum"] = labels, labels
	}
	return d.metrics
}

// expressions are those of dashboard and alerts.
func expressions(t *testing.T) []string {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			ID      int
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "vk-firkin/files/dashboard.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	var alerts struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "vk-firkin/files/alerts.yaml")), &alerts); err != nil {
		t.Fatal(err)
	}
	var all []string
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	for _, g := range alerts.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("alert %+v lacks a name, a severity or a summary", r)
			}
			all = append(all, r.Expr)
		}
	}
	if len(all) < 40 {
		t.Fatalf("only %d expressions", len(all))
	}
	return all
}

var (
	metricUse = regexp.MustCompile(`\b((?:vk_)?firkin_\w+)(?:\{([^}]*)\})?`)
	matcher   = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping  = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// fromScrape are labels that every sample has.
var fromScrape = []string{"instance", "job", "node"}

// unknown are the metrics and labels of an expression that do not exist. Pure.
func unknown(expression string, metrics map[string][]string) (faults []string) {
	have := slices.Clone(fromScrape)
	for _, use := range metricUse.FindAllStringSubmatch(expression, -1) {
		labels, ok := metrics[use[1]]
		if !ok {
			faults = append(faults, use[1])
		}
		for _, m := range matcher.FindAllStringSubmatch(use[2], -1) {
			if !slices.Contains(labels, m[1]) && !slices.Contains(fromScrape, m[1]) {
				faults = append(faults, use[1]+"{"+m[1]+"}")
			}
		}
		have = append(have, labels...)
	}
	for _, by := range grouping.FindAllStringSubmatch(expression, -1) {
		for label := range strings.SplitSeq(by[1], ",") {
			if label = strings.TrimSpace(label); !slices.Contains(have, label) {
				faults = append(faults, "by "+label)
			}
		}
	}
	return faults
}

// TestMetricsExist: what dashboard and alerts ask for is what nodes and controller tell.
func TestMetricsExist(t *testing.T) {
	metrics := known(t)
	for _, e := range expressions(t) {
		if faults := unknown(e, metrics); len(faults) > 0 {
			t.Errorf("%s: there is no %s", e, strings.Join(faults, ", "))
		}
		if !metricUse.MatchString(e) {
			t.Errorf("%s: no metric of this project", e)
		}
		for _, pair := range []string{"()", "{}", "[]"} {
			if strings.Count(e, pair[:1]) != strings.Count(e, pair[1:]) {
				t.Errorf("%s: %s do not match", e, pair)
			}
		}
	}
	for expression, want := range map[string]int{
		`vk_firkin_pods{phase="Running"}`:                   0,
		`vk_firkin_pots`:                                    1,
		`sum by (state) (vk_firkin_pods{state="x"})`:        2,
		`firkin_controller_nodes{state="Unreachable"}`:      0,
		`rate(vk_firkin_pool_refill_seconds{instance="a"})`: 1, // a histogram has no sample of its own name
	} {
		if got := unknown(expression, metrics); len(got) != want {
			t.Errorf("%s: found %v, want %d faults", expression, got, want)
		}
	}
}
