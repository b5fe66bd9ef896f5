package brokertest

import (
	"flag"
	"slices"
	"testing"
	"time"
)

func TestProperties(t *testing.T) { Properties(t, memoryHarness(true)) }

// modelFlaws are flaws of all kinds that a comparison with the model must find. Others are seen by waiting and by
// counting only, which it doesn't do.
var modelFlaws = []string{
	"pages are reversed", "the last of a page is left out", "pages ignore the limit",
	"keys are ignored", "fingerprints are ignored", "limits come before the key", "a crash forgets keys",
	"a fenced owner is told that it settled", "a fenced owner may read", "a crash forgets the fence", "detaching does nothing",
	"detaching forgets counts", "a crash detaches", "all entries of a crashed owner count", "counts of a crashed owner are forgotten",
	"settling forgets", "all are settled", "replies are lost", "deadlines are ignored",
	"a cancel forgets", "a cancel does not ask", "a cancel is always done", "a crash forgets dead letters", "sent again with its counts",
	"sending again never fails", "dropping forgets the record",
	"the limit is off by one",
}

// silent is a verdict without the tale of each step.
type silent struct{ verdict }

func (*silent) Log(...any)          {}
func (*silent) Logf(string, ...any) {}

func TestPropertiesFindFlaws(t *testing.T) {
	defer func(d time.Duration) { patience = d }(patience)
	patience = 500 * time.Millisecond
	for name, value := range map[string]string{"rapid.checks": "300", "rapid.shrinktime": "1ms", "rapid.nofailfile": "true"} {
		f := flag.Lookup(name)
		before := f.Value.String()
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(before) }()
	}
	all := slices.Concat(appendFlaws, keyFlaws, fenceFlaws, settleFlaws, deadlineFlaws, cancelFlaws, recordFlaws, deadFlaws, limitFlaws, offerFlaws, lineFlaws, presenceFlaws, lifeFlaws)
	for _, name := range modelFlaws {
		t.Run(name, func(t *testing.T) {
			i := slices.IndexFunc(all, func(f *flaw) bool { return f.name == name })
			if i < 0 {
				t.Fatal("there is no such flaw")
			}
			v := &silent{verdict{TB: t}}
			done := make(chan struct{})
			go func() { // Fatalf ends it
				defer close(done)
				Properties(v, all[i].harness())
			}()
			<-done
			v.cleanUp()
			if len(v.failures) == 0 {
				t.Fatal("the comparison found nothing")
			}
			t.Logf("%.300s", v.failures[0])
		})
	}
}
